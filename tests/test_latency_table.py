"""The table of measured seconds: what follows from it, its file, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qtool.core.cost import parse_seconds
from qtool.core.errors import UserError
from qtool.core.selection import LayerBits
from qtool.search.latency_table import LatencyTable, Timing, Whole, read_table, require_fit
from qtool.search.space import SearchLayer, Space

W4A8, W4A4, W4A3 = LayerBits(4, 8), LayerBits(4, 4), LayerBits(4, 3)
ENDS = (LayerBits(8, 8),)
SPACE = Space((
    SearchLayer("first", 10, 5, ENDS), SearchLayer("a", 100, 50, (W4A8, W4A4)),
    SearchLayer("b", 200, 60, (W4A8, W4A4)), SearchLayer("last", 10, 5, ENDS),
))  # fmt: skip
MACHINE: dict[str, str | int] = {"runtime": "ort", "cpu": "some", "version": "1", "threads": 1}


def timing(milliseconds: float) -> Timing:
    return Timing(*(1e-3 * milliseconds * part for part in (0.9, 1.0, 1.2)))


def whole(bits: LayerBits, milliseconds: float) -> Whole:
    return Whole({"a": bits, "b": bits}, timing(milliseconds))


def table(narrowest: float = 4.0, **machine: str | int) -> LatencyTable:
    """Alone the layers take 1 and 3 ms at 8 bits, half of it at 4; the network 7 ms."""
    layers = {
        "a": {W4A8: timing(1), W4A4: timing(0.5)}, "b": {W4A8: timing(3), W4A4: timing(1.5)},
    }  # fmt: skip
    network = {layer.name: (layer.macs, layer.weights) for layer in SPACE.layers}
    wholes = whole(W4A8, 7), whole(W4A4, narrowest)
    return LatencyTable({**MACHINE, **machine}, network, layers, *wholes)


def test_what_follows_from_the_measurements() -> None:
    found = table()
    assert found.costs(SPACE) == [[1e-3, 0.5e-3], [3e-3, 1.5e-3]]
    # 7 ms are 3 more than 1 + 3; 4 ms are 2 more than 0.5 + 1.5: 2.5 with half a ms of error.
    assert found.fixed == pytest.approx(2.5e-3) and found.misfit == pytest.approx(0.5e-3)
    assert found.spread() == pytest.approx((4.5e-3, 6.5e-3))
    assert found.noise == pytest.approx(0.3 * 7e-3)


def test_a_table_says_when_bits_hardly_matter() -> None:
    assert table().describe() == (
        "latency on ort, 1 thread: bits move it from 4.5 to 6.5 ms; quartiles of one "
        "measurement are 2.1 ms apart, the sum of layers misses the network by 0.5 ms: "
        "bits hardly matter for latency here"
    )
    quiet = table()
    calm = [
        replace(w, timing=Timing(*[w.timing.median] * 3))
        for w in (quiet.widest, quiet.narrowest)
    ]
    certain = replace(quiet, widest=calm[0], narrowest=calm[1])
    assert "hardly" not in certain.describe()


def test_a_saved_table_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table().save(path)
    assert read_table(path) == table()
    require_fit(read_table(path), path, MACHINE, SPACE)


FIRST, A, B, LAST = SPACE.layers


@pytest.mark.parametrize(("machine", "layers", "message"), [
    ({"cpu": "other"}, SPACE.layers, "was measured with cpu some, here it is other"),
    ({"runtime": "tvm"}, SPACE.layers, "measured with runtime ort, here it is tvm"),
    ({}, (FIRST, A, B), "is of another network (layer last)"),
    ({}, (FIRST, A, B, replace(LAST, macs=11)), "is of another network (layer last)"),
    ({}, (FIRST, replace(A, choices=(W4A8, W4A3)), B, LAST),
     "layer a was not measured at w4a3: measure again"),
])  # fmt: skip
def test_a_table_of_something_else_is_refused(
    tmp_path: Path, machine: dict[str, Any], layers: tuple[SearchLayer, ...], message: str
) -> None:
    with pytest.raises(UserError) as error:
        require_fit(table(), tmp_path / "table.json", MACHINE | machine, Space(layers))
    assert message in str(error.value)


@pytest.mark.parametrize("damage", [
    {"machine": {}}, {"layers": {"a": {"w4": [1, 2, 3]}}}, {"layers": {}}, {"whole": {}},
    {"network": {"a": [1]}}, {"layers": {"a": {"w4a8": [1, 2]}}}, {"format": 2},
])  # fmt: skip
def test_a_damaged_table_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "table.json"
    table().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(UserError) as error:
        read_table(path)
    assert str(error.value).startswith(f"latency table {path}")
    assert "is damaged" in str(error.value) or "format 2 is newer" in str(error.value)


@pytest.mark.parametrize(("text", "seconds"), [
    ("3ms", 3e-3), ("250us", 250e-6), ("0.5s", 0.5), ("1e-1MS", 1e-4),
])  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["3", "0ms", "-1ms", "ms", "3min", "three ms", ""])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UserError, match=r"such as 3ms, 250us or 0\.5s"):
        parse_seconds(text)
