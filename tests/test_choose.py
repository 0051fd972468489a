"""Training and the pass give every layer the same bits, or refuse with the same words."""

import random

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from passes.adaptive.resolve_bits import ResolveBits
from passes.graph import fake_quants
from passes.pipelines import lower
from qtool.core.bank import Bank
from qtool.core.choose import choose
from qtool.core.dialect import Gemm, read_program
from qtool.core.errors import UserError
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.selection import LayerBits, Selection
from qtool.export.trace import trace
from qtool.nn.control import quant_layers, quantizers, select
from qtool.nn.prepare.prepare import LayerSpec, QuantSpec, prepare

SHAPE = (2, 2, 2)
LAYERS = ("left", "right", "block.first", "side", "block.second", "head")
Bits = dict[str, tuple[int | None, int | None]]


class Net(nn.Module):
    """Two layers read the image, one of them moved; ``block`` is entered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 4), nn.Conv2d(2, 4, 1)
        self.block = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
        self.side, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.left(x.flatten(1)))
        y = y + self.right(nn.functional.max_pool2d(x, 2)).flatten(1)
        y = torch.relu(self.block["first"](y))
        y = self.block["second"](torch.relu(self.side(y)))
        z: Tensor = self.head(torch.relu(y))
        return z


def made(spec: QuantSpec) -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(0)
    model = prepare(Net(), spec)
    assert [layer.name for layer in quant_layers(model)] != list(LAYERS)
    return model, ir.to_proto(trace(model, SHAPE))


def trained(model: nn.Module, selection: Selection) -> Bits | str:
    """Return (weight, input) bits of every layer, None for float; or the refusal."""
    before = [(quantizer.selected, quantizer.mix) for quantizer in quantizers(model)]
    try:
        select(model, selection)
    except UserError as error:
        assert before == [(q.selected, q.mix) for q in quantizers(model)]
        return str(error)
    return {
        layer.name: (layer.weight_quant.selected, layer.input_quant.selected)
        for layer in quant_layers(model)
    }


def resolved(graph: onnx.ModelProto, selection: Selection) -> Bits | str:
    """Return the same of the pass."""
    model = ir.from_proto(graph)
    try:
        ResolveBits(selection)(model)
    except UserError as error:
        return str(error)
    found: dict[tuple[str, str], int | None] = {}
    for view in fake_quants(model):
        (bits,) = view.bits
        found[view.name, view.role] = None if bits in FLOAT_WIDTHS else bits
    return {name: (found[name, "weight"], found[name, "activation"]) for name in LAYERS}


def some(rng: random.Random, *known: int) -> tuple[int, ...]:
    return tuple(rng.sample(known, rng.randint(1, 3)))


def random_spec(rng: random.Random) -> QuantSpec:
    own = {
        name: LayerSpec(some(rng, 8, 4, 3, 2), some(rng, 8, 4, 3, 2))
        for name in rng.sample(LAYERS, rng.randint(0, 2))
    }
    return QuantSpec(
        some(rng, 8, 4, 3, 2), some(rng, 8, 4, 3, 2), rng.choice((8, 8, 4)), layers=own
    )


def random_selection(rng: random.Random) -> Selection:
    def bits() -> LayerBits:
        weight = rng.choice((8, 4, 4, 3, 2, 16, 32))
        inputs = rng.choice((8, 4, 4, 3, 2, *([16, 32] if weight in FLOAT_WIDTHS else [])))
        return LayerBits(weight, inputs)

    keys = [*LAYERS, "block.*", "*", "[lr]*", "nowhere", "heap"]
    asked = {key: bits() for key in rng.sample(keys, rng.choice((0, 0, 1, 2)))}
    return Selection(asked, rng.choice((None, bits(), bits())), "--bits")


_MORE_SEEDS = [pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 12)]


@pytest.mark.parametrize("seed", [0, 1, *_MORE_SEEDS])
def test_training_and_pass_choose_alike(seed: int) -> None:
    rng = random.Random(seed)
    model, graph = made(random_spec(rng))
    refused = 0
    for _ in range(100):
        selection = random_selection(rng)
        got = trained(model, selection)
        assert got == resolved(graph, selection), selection
        refused += isinstance(got, str)
    assert 10 < refused < 95


def test_a_default_leaves_the_ends_and_what_reads_the_image() -> None:
    model, graph = made(QuantSpec((4, 3), (4, 2)))
    default = Selection(default=LayerBits(2, 3))
    got = trained(model, default)
    ends = dict.fromkeys(("left", "right", "head"), (8, 8))
    assert got == {**dict.fromkeys(LAYERS, (2, 3)), **ends} == resolved(graph, default)
    for key in ("right", "[r]*"):
        named = Selection({key: LayerBits(2, 3)})
        assert trained(model, named) == resolved(graph, named)
        words = "layer right: activation bits 3 were not trained; trained: 8"
        assert trained(model, named) == words


@pytest.mark.parametrize(
    ("asked", "is_weight", "may_differ", "got"),
    [
        (None, True, False, 4), (2, True, False, 2), (32, True, False, 32),
        (16, False, False, 8), (3, False, True, 4), (2, True, True, 2),
    ],
)  # fmt: skip
def test_the_rule(asked: int | None, is_weight: bool, may_differ: bool, got: int) -> None:
    assert choose((4, 8, 2), asked, is_weight, may_differ, "l") == got


def test_the_rule_refuses() -> None:
    with pytest.raises(UserError, match=r"^layer l: weight bits 3 were not trained; .* 4, 8$"):
        choose((4, 8), 3, True, False, "l")


def test_banks() -> None:
    own, shared = Bank((8, 4, 2)), Bank(((8, 8), (4, 2)), shared=True)
    assert (own.rows, own.row(4), own.rows_of([2, 8])) == (3, 1, [2, 0])
    assert (shared.rows, shared.row((4, 2)), shared.rows_of(shared.keys)) == (1, 0, [0, 0])
    assert own.missing([4, 3, 1]) == [3, 1] and not shared.missing([(8, 8)])
    for bank, key in ((own, 3), (shared, (2, 4))):
        with pytest.raises(ValueError, match="not in tuple"):
            bank.row(key)  # type: ignore[arg-type]
    for keys in ((), (4, 4)):
        with pytest.raises(ValueError, match="must be there, and differ"):
            Bank(keys)


@pytest.mark.parametrize("shared", [False, True])
def test_a_clipping_value_for_each_width_is_exported(shared: bool) -> None:
    """One traced graph; the pass picks PACT's alpha of the bits that are asked for."""
    widths = (8, 4, 2)
    model = prepare(Net(), QuantSpec(widths, widths, quantizer="pact", shared=shared))
    quantizer = next(la for la in quant_layers(model) if la.name == "side").input_quant
    alpha = quantizer.get_parameter("alpha")
    assert not quantizer.signed and alpha.shape == ((1,) if shared else (3,))
    with torch.no_grad():
        alpha.copy_(torch.tensor([6.0] if shared else [6.0, 3.0, 1.5]))
    graph = ir.to_proto(trace(model.eval(), SHAPE))
    for row, bits in enumerate(widths):
        selection = Selection(default=LayerBits(bits, bits))
        one = ir.from_proto(graph)
        ResolveBits(selection)(one)
        (view,) = (v for v in fake_quants(one) if (v.name, v.role) == ("side", "activation"))
        value = 6.0 if shared else (6.0, 3.0, 1.5)[row]
        step = torch.tensor(value) / ((1 << bits) - 1)
        assert view.steps.tolist() == [[step.item()]] == [[quantizer.scale(bits).item()]]
        select(model, selection)
        got = quantizer(torch.tensor([-1.0, value / 2, 99.0]))
        assert got[0] == 0 and torch.isclose(got[2], torch.tensor(value))
        program = read_program(lower(ir.from_proto(graph), selection))
        (side,) = (op for op in program.ops if op.name == "side")
        assert isinstance(side, Gemm) and side.x.scale == step.numpy()
