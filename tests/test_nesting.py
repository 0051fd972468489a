"""Codes at several widths as tables of one stored set: exact whatever the codes are."""

import numpy as np
import onnx_ir as ir
import pytest

from passes.importing.unpacking import unpack
from passes.packing.nesting import CODES, Nested, Width, nest, place
from passes.packing.packing import stored_width
from qtool.core.weight_codes import double_rounding_weight, modified_weight, quantize_weight

SHAPE = (16, 16, 3, 3)


def stored(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 40, shape)
    return np.clip(np.rint(values), -127, 127).astype(np.int8)


def rounded(codes: np.ndarray, bits: int) -> np.ndarray:
    return double_rounding_weight(codes.astype(np.float32), bits)


def test_double_rounding_is_stored_once_with_a_table_for_each_width() -> None:
    layers = {
        f"l{n}": [made(rounded(stored(n), bits), bits) for bits in (8, 4, 3, 2, 1)]
        for n in range(3)
    }
    found = nest(layers)
    tables = {
        how.table.tobytes() for of in found.values() for how in of if how.table is not None
    }
    assert len(tables) == 4  # the layers share them
    assert all(how.shift is None for of in found.values() for how in of)
    for name, widths in layers.items():
        for width, how in zip(widths, found[name], strict=True):
            assert np.array_equal(how.codes, width.codes) and how.nests
            assert np.array_equal(how.stored, widths[0].codes) and how.bits == 8


def made(codes: np.ndarray, width: int) -> Width:
    return Width(codes, stored_width(codes, width), width)


def floors(seed: int) -> list[Width]:
    t = np.random.default_rng(seed).uniform(-0.999, 1, SHAPE).astype(np.float32)
    return [made(modified_weight(t, bits).astype(np.int8), bits) for bits in (8, 5, 2, 1)]


def test_floors_nest_and_channels_that_batchnorm_turned_follow_a_second_rule() -> None:
    turned = np.where(np.arange(16) % 3 == 0, -1, 1).astype(np.int8)
    turned[5] = 0  # off
    layers = {"a": floors(1), "b": floors(2)}
    layers["b"] = [
        made(width.codes * turned.reshape(-1, 1, 1, 1), width.width) for width in layers["b"]
    ]
    found = nest(layers)
    for name, widths in layers.items():
        for width, how in zip(widths, found[name], strict=True):
            assert how.nests and np.array_equal(how.codes, width.codes)
            assert np.array_equal(how.stored, widths[0].codes)
    plain, mixed = found["a"][1], found["b"][1]
    assert plain.table is not None and mixed.table is not None
    assert np.array_equal(plain.table, mixed.table) and mixed.shift is not None
    assert len(set(mixed.rules[turned > 0])) == len(set(mixed.rules[turned < 0])) == 1
    assert mixed.rules[0] != mixed.rules[1]


def test_a_step_for_each_width_does_not_nest() -> None:
    w = np.random.default_rng(2).normal(0, 1, SHAPE).astype(np.float32)
    widths = [
        made(quantize_weight(w, np.full(16, step, np.float32), top), bits)
        for bits, step, top in ((8, 0.03, 127), (4, 0.4, 7), (2, 1.1, 1))
    ]
    found = nest({"l": widths})["l"]
    assert [how.nests for how in found] == [True, False, False]
    for width, how in zip(widths, found, strict=True):
        assert np.array_equal(how.codes, width.codes) and how.bits == width.bits


def test_few_codes_are_stored_apart_though_they_nest() -> None:
    few = stored(3, (4, 1, 3, 3))
    found = nest({"l": [made(few, 8), made(rounded(few, 2), 2)]})["l"]
    assert found[1].table is None and found[1].nests and found[1].bits == 2


def test_layers_that_contradict_each_other_follow_rules_of_their_own() -> None:
    codes = stored()
    other = np.where(codes == 8, 1, rounded(codes, 4)).astype(np.int8)  # a half that went up
    found = nest({
        "a": [made(codes, 8), made(rounded(codes, 4), 4)],
        "b": [made(codes, 8), made(other, 4)],
    })  # fmt: skip
    assert found["a"][1].rules.tolist() != found["b"][1].rules.tolist()
    assert np.array_equal(found["b"][1].codes, other)
    assert np.array_equal(found["a"][1].codes, rounded(codes, 4))


def test_two_sets_of_codes_of_one_width_are_not_mixed_up() -> None:
    codes = stored()
    other = -rounded(codes, 4)
    layers = [made(codes, 8), made(rounded(codes, 4), 4), made(other, 4)]
    found = nest({"l": layers})["l"]
    assert all(np.array_equal(h.codes, w.codes) for h, w in zip(found, layers, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_random_functions_and_random_codes(seed: int) -> None:
    draw = np.random.default_rng(seed)
    layers = {}
    for name in ("a", "b", "c"):
        codes = draw.integers(-127, 128, (8, int(draw.integers(1, 90))), np.int8)
        answers = draw.integers(-7, 8, 256).astype(np.int8)
        function = answers[codes.view(np.uint8)]
        chance = draw.integers(-2, 2, codes.shape).astype(np.int8)
        layers[name] = [made(codes, 8), made(function, 4), made(chance, 2)]
    for name, hows in nest(layers).items():
        for width, how in zip(layers[name], hows, strict=True):
            assert np.array_equal(how.codes, width.codes)
        assert hows[1].nests


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_what_was_placed_is_read_back(bits: int, shifted: bool) -> None:
    codes = rounded(stored(5), bits)
    table = np.random.default_rng(bits).integers(-8, 8, 3 * CODES).astype(np.int8)
    rules = (np.arange(16) % 3 * shifted).astype(np.int32)
    graph = ir.Graph([], [], nodes=[])
    nested = Nested(codes, bits, table, rules)
    first, again = (place(graph, None, name, nested) for name in ("w", "v"))
    for channel, number in enumerate(rules):
        code = int(codes[channel, 3, 1, 1])
        wanted = table[code % len(table) if number == 0 else code + CODES * number]
        assert nested.codes[channel, 3, 1, 1] == wanted
    assert np.array_equal(unpack(first), nested.codes)
    assert np.array_equal(unpack(again), nested.codes)
    assert sum(name.startswith("qtool.to_") for name in graph.initializers) == 1


@pytest.mark.parametrize("damage", ["short", "int16", "rank", "shift", "wide", "kind"])
def test_other_forms_are_not_read(damage: str) -> None:
    codes = rounded(stored(6), 8)
    graph = ir.Graph([], [], nodes=[])
    nested = Nested(codes, 8, np.zeros(2 * CODES, np.int8), np.arange(16, dtype=np.int32) % 2)
    value = place(graph, None, "w", nested)
    gather = value.producer()
    assert gather is not None and unpack(value) is not None
    add = gather.inputs[1].producer()
    assert add is not None

    def put(node: ir.Node, index: int, array: np.ndarray) -> None:
        node.replace_input_with(index, ir.Value(name="t", const_value=ir.tensor(array)))

    wrong = {
        "short": (gather, 0, np.zeros(300, np.int8)),
        "int16": (gather, 0, np.zeros(2 * CODES, np.int16)),
        "rank": (gather, 0, np.zeros((2 * CODES, 1), np.int8)),
        "shift": (add, 1, np.full(1, 2 * CODES, np.int32)),
        "wide": (add, 1, np.zeros((2, *SHAPE), np.int32)),
        "kind": (add, 1, np.zeros(1, np.int64)),
    }
    put(*wrong[damage])
    assert unpack(value) is None
