"""Norms and biases with several rows: the rule, the pass, the modules, one graph for all."""

import copy
from typing import cast

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import graph
from torch import Tensor, nn

from passes.adaptive.norm_rows import norm_rows
from passes.adaptive.resolve_bits import ResolveBits
from passes.pipelines import lower
from qtool.core.choose import Candidates, Serves, choose_rows, given_bits
from qtool.core.dialect import constant, read_program
from qtool.core.errors import UnsupportedError, UserError
from qtool.core.selection import LayerBits, Selection, read_selection
from qtool.data.batches import Batches
from qtool.data.images import Images
from qtool.export.export import integer_model
from qtool.export.source import AdaptiveSource
from qtool.export.trace import trace
from qtool.models.normalised import ConstantNorm, Normalised
from qtool.nn.capture.capture import capture
from qtool.nn.control import calibrate, quant_layers, quantizers, select
from qtool.nn.modules.affine import QuantAffine
from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.norm_rows import add_rows, give_rows, settle, switches
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.nn.shared_prefix import SharedPrefix
from qtool.training.evaluation import recalibrate_norms
from runtimes.reference import ReferenceRuntime

SHAPE = (3, 8, 8)
KEYS = ("w8a8", "w4a4", "w4a8")
INNER = Candidates((8, 4, 3), (8, 4, 3))
END = Candidates((8,), (8,))
LAYERS = {"first": END, "one": INNER, "two": INNER, "last": END}


# --- the rule ---


def rows(keys: tuple[str, ...], bits: str) -> tuple[int, ...]:
    """Return the rows of "", first, one, two and last."""
    selection = read_selection(bits)
    given = {name: layer.given(selection.of(name)) for name, layer in LAYERS.items()}
    found = choose_rows(keys, LAYERS, given)
    assert list(found) == ["", *LAYERS]
    return tuple(found.values())


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        # All at one key's bits: its row everywhere, also where a layer has bits of its own.
        ("w8a8", (0, 0, 0, 0, 0)),
        ("w4a4", (1, 1, 1, 1, 1)),
        ("w4a8", (2, 2, 2, 2, 2)),
        ("one=w4a4,two=w4a4", (1, 1, 1, 1, 1)),
        # Mixed: each its own.
        ("w4a4,one=w4a8", (0, 0, 2, 1, 0)),
        ("one=w4a4", (0, 0, 1, 0, 0)),
        # No such row: the default one.
        ("w3a3", (0, 0, 0, 0, 0)),
        ("w4a4,two=w3a4", (0, 0, 1, 0, 0)),
        ("w8a8,one=w32a32", (0, 0, 0, 0, 0)),
    ],
)
def test_rows_of_a_selection(bits: str, expected: tuple[int, ...]) -> None:
    assert rows(KEYS, bits) == expected


def test_the_default_row_is_not_that_of_the_ends_in_its_own_preset() -> None:
    assert rows(("w4a4", "w8a8"), "w4a4") == (0, 0, 0, 0, 0)
    assert rows(("w4a4", "w8a8"), "w4a4,one=w3a3") == (0, 1, 0, 0, 1)


def test_one_width_is_a_key_too() -> None:
    keys = ("a8", "a4", "a3")
    assert rows(keys, "w8a4") == rows(keys, "w3a4") == (1, 1, 1, 1, 1)
    assert rows(keys, "w4a4,one=w8a3") == (0, 0, 2, 1, 0)
    assert rows(("w8", "w4"), "one=w4a3") == (0, 0, 1, 0, 0)
    # A pair says more.
    both = ("w8a8", "a4", "w4a4")
    assert rows(both, "one=w4a4,two=w3a3") == (0, 0, 2, 0, 0)
    assert rows(both, "one=w8a4,two=w3a3") == (0, 0, 1, 0, 0)
    # Float weights are bits too.
    assert rows(("w32a8", "w8a8"), "w8a8,one=w32a8") == (0, 1, 0, 1, 1)


@pytest.mark.parametrize("key", ["", "x4", "a", "4", "w4a4b2", "a4w4"])
def test_keys_of_another_form_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"row '{key}' of a bank: its key is not like w4a4"):
        choose_rows(("w8a8", key), {}, {})


def test_of_exact_rows_those_that_can_be_deployed_are_named_first() -> None:
    floats = tuple(f"w{w}a{a}" for w in (16, 8, 4, 2) for a in (16, 32))
    keys = ("w8a8", *floats, "w4a4", "w2a2")
    given = dict.fromkeys(LAYERS, LayerBits(1, 1))
    with pytest.raises(UserError, match="they were at w8a8, w4a4, w2a2, w16a16, "):
        choose_rows(keys, LAYERS, given, Serves.WHOLE)


def test_own_rows_serve_each_layer_at_its_bits_alone() -> None:
    def picked(bits: str) -> dict[str, int]:
        given = given_bits(LAYERS, read_selection(bits))
        return choose_rows(("w8a8", "w4a4"), LAYERS, given, Serves.OWN)

    assert picked("w4a4,one=w8a8")["one"] == 0 and picked("w4a4,one=w8a8")["two"] == 1
    for bits in ("w4a4,two=w3a4", "w4a8"):
        with pytest.raises(UserError) as refused:
            picked(bits)
        assert "its BatchNorm was never trained at weights of" in str(refused.value)
        assert "each layer may have w8a8, w4a4" in str(refused.value)


# --- the pass ---

HEADER = '<ir_version: 10, opset_import: ["" : 21, "qtool" : 1]>'
BANKS = """float[2, 1] bias = {0.5, 1}, float[2, 1] scale = {2, 3}, float[1, 1] mean = {4},
 float[2, 1] var = {5, 6}, float[1] own = {0.25}, float[2] flat = {1, 2}"""


def layered(norm: str, before: str = "c = Conv(q, k)", layer: str = "conv") -> ir.Model:
    """A layer of 8- or 4-bit weights and inputs, and a Norm of `norm`'s inputs behind it."""
    return graph(
        f"""{HEADER} g (float[N, 1, 5, 5] x) => (float[N, 1, 5, 5] y)
        <float[2, 1] s = {{0.5, 1}}, float[1, 1, 1, 1] w = {{3}}, {BANKS}>
        {{ q = qtool.FakeQuant<name="conv", role="activation", bits=[8, 4], signed=0>(x, s)
        k = qtool.FakeQuant<name="conv", role="weight", bits=[8, 4], signed=1>(w, s)
        {before}
        y = qtool.Norm<name="n", layer="{layer}", keys=["w8a8", "w4a4"], epsilon=0.5>({norm})
        }}"""
    )


def resolved(model: ir.Model, bits: str | None) -> ir.Node:
    """Return the last operator after ResolveBits, which changes nothing the second time."""
    step = ResolveBits(Selection() if bits is None else read_selection(bits))
    assert step(model).modified and not step(model).modified
    return list(model.graph)[-1]


def parts(node: ir.Node) -> list[list[float]]:
    """Return the constants that `node` reads."""
    arrays = [constant(value) for value in node.inputs if value is not None]
    return [array.reshape(-1).tolist() for array in arrays if array is not None]


@pytest.mark.parametrize(
    ("bits", "layer", "expected"),
    [
        (None, "conv", [[2], [0.5], [4], [5]]),
        ("w8a8", "conv", [[2], [0.5], [4], [5]]),
        ("w4a4", "conv", [[3], [1], [4], [6]]),
        ("w4a8", "conv", [[2], [0.5], [4], [5]]),
        ("w4a4", "", [[3], [1], [4], [6]]),
        ("w4a4", "unknown", [[3], [1], [4], [6]]),
    ],
)
def test_a_batchnorm_keeps_one_row(
    bits: str | None, layer: str, expected: list[list[float]]
) -> None:
    node = resolved(layered("c, bias, scale, mean, var", layer=layer), bits)
    assert (node.domain, node.op_type) == ("", "BatchNormalization")
    assert node.attributes.get_float("epsilon") == 0.5
    assert parts(node) == expected
    assert node.outputs[0].name == "y" and node.outputs[0].is_graph_output()


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("c = Conv(q, k)", 1.0),
        ("c = Conv(q, k, own)", 1.25),
        ("f = Flatten(q)\nh = Flatten(k)\nc = Gemm(f, h)", 1.0),
    ],
)
def test_a_bias_goes_back_to_its_layer(before: str, expected: float) -> None:
    node = resolved(layered("c, bias", before), "w4a4")
    assert node.op_type == before.rpartition("c = ")[2].split("(")[0]
    assert parts(node)[-1] == [expected]
    assert node.outputs[0].name == "y" and node.outputs[0].is_graph_output()


@pytest.mark.parametrize(
    ("norm", "before", "message"),
    [
        ("c, x", "c = Conv(q, k)", "Norm n: its rows are not constant, or some are missing"),
        ("c, bias, scale", "c = Conv(q, k)", "Norm n: its rows are not constant, or some"),
        ("c, flat", "c = Conv(q, k)", r"Norm n: bias is \[2\], expected 1 or 2 rows"),
        ("q, bias", "", "Norm n: a bias after FakeQuant, not Conv or Gemm"),
        ("x, bias", "", "Norm n: a bias after the input, not Conv or Gemm"),
        (
            "c, bias", "c = Conv(q, k)\nd = Relu(c)",
            "layer n: its result is also read without its bias",
        ),
    ],
)  # fmt: skip
def test_norms_that_are_refused(norm: str, before: str, message: str) -> None:
    model = layered(norm, before)
    with pytest.raises(UnsupportedError, match=message):
        norm_rows(model)


# --- the modules ---


class Net(nn.Module):
    """A stem with BatchNorm, a pre-activation block, and a classifier with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm0, self.relu = nn.BatchNorm2d(4), nn.ReLU()
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm0(self.stem(x)))
        y = self.conv1(self.relu(self.norm1(x)))
        x = x + self.conv2(self.relu(self.norm2(y)))
        return cast(Tensor, self.fc(x.mean((2, 3))))


def prepared(keys: tuple[str, ...] = KEYS) -> nn.Module:
    """Return the network with grids of 8, 4 and 3 bits, and rows that all differ."""
    torch.manual_seed(0)
    model = prepare(Net(), QuantSpec((8, 4, 3), (8, 4, 3)), SHAPE)
    calibrate(model, torch.rand(8, *SHAPE))
    give_rows(model, keys)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    biases = {key: {"fc.layer.bias": torch.randn(5)} for key in keys[1:]}
    add_rows(model, keys[0], biases, "here")
    # A calibrated step is a simple fraction of the largest value: many ties, all together.
    for quantizer in quantizers(model):
        if isinstance(quantizer.step, nn.Parameter):
            with torch.no_grad():
                quantizer.step.mul_(torch.empty_like(quantizer.step).uniform_(0.9, 1.1))
    select(model.eval(), Selection())
    return model


def picked(model: nn.Module) -> dict[str, str]:
    return {switch.name: switch.key for switch in switches(model)}


def test_every_norm_and_bias_has_rows_of_a_layer() -> None:
    model = prepared()
    layers = {switch.name: switch.layer for switch in switches(model)}
    # norm1 stands alone: the layer that reads it says which row. norm2 belongs to conv1.
    assert layers == {"stem": "stem", "norm1": "conv1", "conv1": "conv1", "fc": "fc"}
    assert isinstance(model.get_submodule("norm1"), QuantAffine)
    assert set(model.get_submodule("stem.norm").state_dict()) >= {
        f"rows.{key}.{part}" for key in KEYS for part in ("weight", "running_mean")
    }


def test_a_single_key_changes_nothing() -> None:
    model = prepare(Net(), QuantSpec(), SHAPE)
    give_rows(model, ("w8a8",))
    assert switches(model) == []


def test_rows_are_picked_by_the_rule() -> None:
    model = prepared()
    select(model, read_selection("w4a8"))
    assert set(picked(model).values()) == {"w4a8"}
    select(model, read_selection("w4a4,conv1=w4a8"))
    assert picked(model) == {"stem": "w8a8", "norm1": "w4a8", "conv1": "w4a8", "fc": "w8a8"}
    select(model, read_selection("w3a3,conv1=w4a4"))
    assert picked(model) == {"stem": "w8a8", "norm1": "w4a4", "conv1": "w4a4", "fc": "w8a8"}


def test_training_changes_the_picked_row_only() -> None:
    model = prepared().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    select(model, read_selection("w4a4"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    x, (stem, *_) = torch.rand(8, *SHAPE), quant_layers(model)
    with torch.no_grad():
        weight = stem.weight_quant(stem.layer.weight)
        sums = nn.functional.conv2d(stem.input_quant(x), weight, padding=1)
    model(x).square().sum().backward()
    optimizer.step()
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    ours = {name for name in after if ".rows." in name}
    assert {name for name in ours if ".rows.w4a4" in name} == changed & ours
    # The statistics are those of a BatchNorm: a tenth of the batch's.
    got = after["stem.norm.rows.w4a4.running_mean"]
    wanted = 0.9 * before["stem.norm.rows.w4a4.running_mean"] + 0.1 * sums.mean((0, 2, 3))
    torch.testing.assert_close(got, wanted)


def test_recalibration_is_of_the_picked_row() -> None:
    model = prepared()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    select(model, read_selection("w4a8"))
    pixels = np.random.default_rng(0).integers(0, 256, (32, *SHAPE), np.uint8)
    source = Images(pixels, np.zeros(32, np.int64))
    recalibrate_norms(model, Batches(source, 16, seed=0), 2)
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {
        f"{owner}.norm.rows.w4a8.{part}" for owner in ("stem", "norm1", "conv1")
        for part in ("running_mean", "running_var", "num_batches_tracked")
    }  # fmt: skip


def test_settling_leaves_the_picked_rows() -> None:
    model = prepared()
    names = set(prepare(Net(), QuantSpec((8, 4, 3), (8, 4, 3)), SHAPE).state_dict())
    bits, x = read_selection("w4a4,conv1=w4a8"), torch.rand(4, *SHAPE)
    select(model, bits)
    expected, rows_before = model(x), model.state_dict()
    settle(model)
    assert switches(model) == []
    assert torch.equal(model(x), expected)
    state = model.state_dict()
    assert set(state) == names
    for path, row in (("norm1", "w4a8"), ("stem", "w8a8")):
        own = rows_before[f"{path}.norm.rows.{row}.bias"]
        assert torch.equal(state[f"{path}.norm.bias"], own)
    assert torch.equal(state["fc.layer.bias"], rows_before["fc.biases.rows.w8a8"])


def test_a_norm_with_rows_is_not_shared_by_all_bits() -> None:
    """What stands before the first candidates is computed once, unless its norm has rows."""
    plain = prepare(Net(), QuantSpec((8, 4), 4), SHAPE)
    assert not SharedPrefix(copy.deepcopy(plain)).is_empty
    give_rows(plain, KEYS)
    calls: list[int] = []
    quant_layers(plain)[0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.rand(4, *SHAPE)
    calibrate(plain, x)
    calls.clear()
    with SharedPrefix(plain.train()).passes(x) as run:
        for bits in ("w4a8", "w4a4"):
            select(plain, read_selection(bits))
            run()
    assert len(calls) == 2


def test_tensors_that_can_have_no_rows_are_refused() -> None:
    def add(name: str, tensor: Tensor) -> None:
        model = prepare(Net(), QuantSpec(), SHAPE)
        add_rows(model, "w8a8", {"w4a4": {name: tensor}}, "corrections")

    for name in ("stem.layer.weight", "conv1.layer.bias", "nowhere.norm.bias"):
        with pytest.raises(UserError, match=f"corrections: {name} is neither of a BatchNorm"):
            add(name, torch.zeros(4))
    with pytest.raises(UserError, match=r"corrections: stem.norm.bias has another shape"):
        add("stem.norm.bias", torch.zeros(3))
    with pytest.raises(UserError, match="row 'v2' of a bank"):
        add_rows(nn.Identity(), "w8a8", {"v2": {}}, "corrections")


# --- all of it: one trace serves every selection ---


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return prepared()


@pytest.fixture(scope="module")
def traced(model: nn.Module) -> ir.Model:
    return trace(model, SHAPE)


def test_the_graph_has_every_row(traced: ir.Model, model: nn.Module) -> None:
    views = {view.name: view for view in norm_rows(traced)}
    assert list(views) == ["stem", "norm1", "conv1", "fc"]
    assert {view.keys for view in views.values()} == {KEYS}
    assert views["norm1"].layer == "conv1" and list(views["fc"].banks) == ["bias"]
    state = model.state_dict()
    for row, key in enumerate(KEYS):
        got = views["stem"].row("running_var", row)
        assert np.array_equal(got, state[f"stem.norm.rows.{key}.running_var"].numpy())
    assert not any(node.op_type == "BatchNormalization" for node in traced.graph)


def test_rows_that_are_all_the_same_are_stored_once() -> None:
    own = prepare(Net(), QuantSpec((8, 4), (8, 4)), SHAPE)
    calibrate(own, torch.rand(8, *SHAPE))
    add_rows(own, "w8a8", {"w4a4": {"stem.norm.bias": torch.ones(4)}}, "here")
    (view,) = norm_rows(trace(own, SHAPE))
    assert {part: len(bank) for part, bank in view.banks.items()} == {
        "bias": 2, "weight": 1, "running_mean": 1, "running_var": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "bits", ["w8a8", "w4a4", "w4a8", "w3a3", "w4a4,conv1=w4a8", "conv2=w4a8,conv1=w4a4"]
)
def test_integers_are_those_of_torch(model: nn.Module, traced: ir.Model, bits: str) -> None:
    selection = read_selection(bits)
    program = read_program(lower(traced.clone(), selection))
    x = torch.rand(32, *SHAPE, generator=torch.Generator().manual_seed(0))
    select(model.eval(), selection)
    with torch.no_grad():
        fake = model(x).numpy() / program.output_grid.scale
    exact = ReferenceRuntime(program).run(x.numpy()) / program.output_grid.scale
    assert np.array_equal(np.rint(fake), np.rint(exact))


def test_one_graph_is_what_each_selection_traced_itself_gives(traced: ir.Model) -> None:
    for bits in ("w8a8", "w4a4", "w4a8", "w4a4,conv1=w4a8"):
        selection, alone = read_selection(bits), prepared()
        select(alone, selection)
        settle(alone)
        expected = read_program(lower(trace(alone, SHAPE), selection)).digest()
        assert read_program(lower(traced.clone(), selection)).digest() == expected


def test_what_gives_an_adaptive_graph_is_exported(traced: ir.Model) -> None:
    class File:
        """As it were a float ONNX file with calibration data."""

        def graph(self) -> ir.Model:
            return traced.clone()

        def selection(self) -> Selection:
            return Selection({"conv1": LayerBits(4, 4)})

        def metadata(self, selection: Selection) -> dict[str, str]:
            return {"qtool.version": "0"}

    source: AdaptiveSource = File()
    own, other = (integer_model(source, bits) for bits in (None, "w4a8"))
    assert own.metadata_props["qtool.version"] == "0"
    programs = [read_program(model) for model in (own, other)]
    bits = [{cost.name: cost.bits for cost in p.layer_costs()}["conv1"] for p in programs]
    assert bits == [LayerBits(4, 4), LayerBits(4, 8)]


# --- constants ---


class Odd(nn.Module):
    """torch.fx cannot trace it: torch.export does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return cast(Tensor, y if x.shape[2] > 4 else -y)


@pytest.mark.parametrize("network", [Net, Odd])
def test_constant_norms_stay_constant(network: type[nn.Module]) -> None:
    own = Normalised(network(), (0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
    captured = capture(own, SHAPE)
    constant_norms = [m for m in captured.modules() if isinstance(m, ConstantNorm)]
    assert len(constant_norms) == 1 and not constant_norms[0].training
    model = prepare(own, QuantSpec((8, 4), (8, 4)), SHAPE)
    give_rows(model, KEYS)
    assert isinstance(model.get_submodule("normalise.norm"), ConstantNorm)
    before = {name: v.clone() for name, v in model.state_dict().items() if "normalise" in name}
    calibrate(model, torch.rand(4, *SHAPE))
    model.train()(torch.rand(4, *SHAPE))
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    switched = [switch for switch in switches(model) if isinstance(switch, SwitchNorm)]
    assert len(switched) == len(
        [m for m in own.network.modules() if type(m) is nn.BatchNorm2d]
    )


def test_a_norm_of_momentum_0_is_an_ordinary_one() -> None:
    """It was a mark once: such a norm uses the batch's statistics in training."""
    net = nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(3, momentum=0.0), nn.Conv2d(3, 4, 1))
    model = prepare(net, QuantSpec(), SHAPE).train()
    assert cast(QuantAffine, model.get_submodule("1")).norm.training
