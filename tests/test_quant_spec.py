"""QuantSpec: which quantizer and which bits every layer gets, and what is refused."""

import math

import pytest
import torch
from torch import Tensor, nn

from qtool.core.errors import UserError
from qtool.core.selection import LayerBits, Selection
from qtool.nn.control import calibrate, quant_layers, quantizers, select, selected_bits
from qtool.nn.grid_fit import fit_values
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.modules.shared_grid import SharedGrid
from qtool.nn.prepare.prepare import LayerSpec, QuantSpec, prepare
from qtool.quantizers import QUANTIZERS
from qtool.quantizers.normalised import normalised
from qtool.settings.base import Config
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.override import override


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer1, self.layer2 = nn.Conv2d(3, 4, 3, padding=1), Block(), Block()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


def net(spec: QuantSpec, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = prepare(Net(), spec, (3, 8, 8))
    return model


def layers(spec: QuantSpec) -> dict[str, QuantLayer]:
    return {layer.name: layer for layer in quant_layers(net(spec))}


def test_the_first_pattern_that_matches_counts() -> None:
    found = layers(
        QuantSpec(
            (4,), 4,
            layers={
                "layer1.conv1": LayerBits(2, 3),
                "layer*.conv1": LayerSpec(weight_bits=(8, 2), activation_bits=(8, 4, 2)),
                "layer?.conv*": LayerSpec(quantizer="pact", weight_quantizer="sat"),
                "fc": LayerBits(5, 6),
            },
        )
    )  # fmt: skip
    bits = {name: (q.weight_quant.bits, q.input_quant.bits) for name, q in found.items()}
    assert bits == {
        "stem": ((8,), (8,)), "layer1.conv1": ((2,), (3,)), "layer1.conv2": ((4,), (4,)),
        "layer2.conv1": ((8, 2), (8, 4, 2)), "layer2.conv2": ((4,), (4,)), "fc": ((5,), (6,)),
    }  # fmt: skip
    kinds = {name: (q.weight_quant.kind, q.input_quant.kind) for name, q in found.items()}
    assert kinds["layer1.conv2"] == kinds["layer2.conv2"] == ("sat", "pact")
    assert set(kinds.values()) == {("lsq", "lsq"), ("sat", "pact")}


@pytest.mark.parametrize(
    ("quantizer", "ends", "inner", "parameters"),
    [
        ("lsq", ("lsq", "lsq"), ("lsq", "lsq"), {"input_quant.step", "weight_quant.step"}),
        ("pact", ("pact", "pact"), ("pact", "pact"),
         {"input_quant.alpha", "weight_quant.step"}),
        ("dorefa", ("lsq", "lsq"), ("dorefa", "dorefa"), set()),
        ("sat", ("sat", "sat"), ("sat", "sat"), {"input_quant.alpha"}),
        ("any_precision", ("lsq", "lsq"), ("any_precision", "any_precision"), set()),
    ],
)  # fmt: skip
def test_ends_and_parameters_of_a_quantizer(
    quantizer: str, ends: tuple[str, str], inner: tuple[str, str], parameters: set[str]
) -> None:
    found = layers(QuantSpec((4,), 4, quantizer=quantizer))
    kinds = {name: (q.weight_quant.kind, q.input_quant.kind) for name, q in found.items()}
    # The image's grid is fixed, whatever quantizer there is.
    assert kinds["stem"] == (ends[0], "lsq") and kinds["fc"] == ends
    assert kinds["layer1.conv2"] == inner
    names = {name for name, _ in found["layer1.conv2"].named_parameters()}
    assert names - {"layer.weight", "norm.weight", "norm.bias"} == parameters


def test_float_ends_read_8_bits() -> None:
    model = net(QuantSpec((4,), 4, first_last_bits=32, quantizer="dorefa"))
    select(model, Selection(default=LayerBits(4, 4)))
    found = {layer.name: layer for layer in quant_layers(model)}
    for name in ("stem", "fc"):
        assert found[name].weight_quant.selected is None
        assert found[name].input_quant.selected == 8
        assert not list(found[name].weight_quant.parameters())
    bits = selected_bits(model, Selection(default=LayerBits(4, 4)))
    assert bits["stem"] == bits["fc"] == LayerBits(32, 32)
    assert bits["layer1.conv1"] == LayerBits(4, 4)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_shared_parameters_and_training(quantizer: str) -> None:
    model = net(QuantSpec((8, 4, 2), (7, 4), quantizer=quantizer, shared=True))
    x = torch.rand(8, 3, 8, 8)
    calibrate(model, x)
    inner = [q for layer in quant_layers(model)[1:-1] for q in layer.children()]
    for q in inner:
        if isinstance(q, Quantizer):
            assert all(len(p) == 1 for p in q.parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    model.train()
    for bits in (8, 4, 2):
        select(model, Selection(default=LayerBits(4 if bits == 4 else 7, bits)))
        nn.functional.cross_entropy(model(x), torch.arange(8) % 3).backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert set(before) - moved <= {"stem.input_quant.step"}
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [8, 2])
def test_calibrated_inputs_use_their_grid(quantizer: str, bits: int) -> None:
    model = net(QuantSpec((bits,), 4, quantizer=quantizer))
    x = torch.rand(16, 3, 8, 8)
    stats = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    calibrate(model, x)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in stats.items())
    select(model, Selection())
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        assert isinstance(module, Quantizer)
        seen[module.name] = (args[0], out / module.scale(bits))

    for layer in quant_layers(model)[1:-1]:
        layer.input_quant.register_forward_hook(look)
    with torch.no_grad():
        model.train()(x)
    for values, codes in seen.values():
        used = len(codes.round().unique())
        assert used >= {8: 40, 2: 3}[bits], float(values.max())
    assert len(seen) == 4


def test_zero_points_follow_offsets() -> None:
    quantizer = FakeQuantizer("l", "activation", (8, 4), signed=True, kind="lsq_plus")
    torch.manual_seed(0)
    x = torch.nn.functional.hardswish(torch.randn(2000) * 2)
    fit_values(quantizer, x)
    start = quantizer.zero_points
    offset, step = quantizer.get_parameter("offset"), quantizer.get_parameter("step")
    assert all(0 < zero < 100 for zero in start)
    assert torch.allclose(-offset / step[:, 0], torch.tensor(start).float())
    quantizer.selected = 4
    quantizer.train()(x)
    with torch.no_grad():
        offset[1] -= 1.6 * step[1, 0]
    assert quantizer.zero_points == start
    quantizer.eval()  # as after the optimizer's last step
    assert quantizer.zero_points == (start[0], start[1] + 2)
    assert quantizer.limits(4) == (start[1] + 2, 13 - start[1])
    assert quantizer.zero_point.tolist() == list(quantizer.zero_points)
    twin = FakeQuantizer("l", "activation", (8, 4), signed=True, kind="lsq_plus")
    twin.load_state_dict(quantizer.state_dict())
    twin.selected = 4
    assert torch.equal(twin.eval()(x), quantizer(x))


def test_alpha_stays_below_what_relu6_needs() -> None:
    quantizer = FakeQuantizer("l", "activation", (4, 2), False, kind="pact", ceiling=6.0)
    quantizer.get_parameter("alpha").data.fill_(9)
    quantizer.selected = 4
    quantizer.train()(torch.rand(5))
    assert quantizer.get_parameter("alpha").tolist() == [6, 6]
    assert float(quantizer.scale(2).detach()) == 2.0


def test_only_lsq_inputs_share_the_tensor_s_grid() -> None:
    for kind, shared in (("lsq", True), ("pact", False)):
        model = net(QuantSpec((8,), 8, quantizer=kind))
        assert any(isinstance(q, SharedGrid) for q in quantizers(model)) is shared


def test_sat_rescales_only_what_no_norm_follows() -> None:
    found = layers(QuantSpec((4,), 4, quantizer="sat"))
    conv, fc = found["layer1.conv1"], found["fc"]
    assert float(conv.weight_quant.scale(4, conv.layer.weight)) == 2**-3
    weight = fc.layer.weight.detach()
    spread = fc.weight_quant.quantize_at(weight, 8).std()
    assert float(spread) == pytest.approx(1 / math.sqrt(len(weight)), rel=1e-6)


def test_normalised_weights_by_channel() -> None:
    w = torch.randn(3, 5)
    assert torch.equal(normalised(w, True).abs().amax(1), torch.ones(3))
    assert normalised(w, False).abs().amax() == 1
    assert torch.equal(normalised(torch.zeros(2, 2), True), torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (QuantSpec(layers={"layer1.cnv1": LayerBits(4, 4)}),
         "unknown layer or pattern in QuantSpec.layers 'layer1.cnv1': did you mean layer1.co"),
        (QuantSpec(layers={"layer9.*": LayerSpec(weight_bits=2)}),
         "unknown layer or pattern in QuantSpec.layers 'layer9.*': did you mean layer"),
        (QuantSpec(quantizer="lsqq"),
         "unknown quantizer 'lsqq': did you mean lsq or lsq_plus?"),
        (QuantSpec(layers={"fc": LayerSpec(activation_quantizer="x")}),
         "unknown quantizer 'x': known: any_precision"),
        (QuantSpec((8,), 8, quantizer="dorefa"),
         "layer layer1.conv1: dorefa weights of 8 bits are odd integers that int8 does not"),
        (QuantSpec((8,), (4, 32)),
         "layer stem: weight bits 32: float needs no candidate, leave it out"),
        (QuantSpec((32,), 4), "layer stem: activation bits 32 not supported, expected 1 to 8"),
        (QuantSpec((8, 4, 8), 4), "layer stem: activation bits 8: given twice"),
        (QuantSpec(first_last_bits=9), "layer stem: weight bits 9 not supported, expected 1"),
    ],
)  # fmt: skip
def test_refusals(spec: QuantSpec, message: str) -> None:
    with pytest.raises(UserError) as caught:
        net(spec)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_recipe_settings() -> None:
    config = MetaMixConfig("test", "resnet20", "none")
    changed = override(config, ["quantizer=sat", "first_last_bits=32", "weight_quantizer=lsq"])
    assert (changed.quantizer, changed.first_last_bits) == ("sat", 32)
    assert isinstance(changed, Config) and changed.weight_quantizer == "lsq"
    for setting, reason in (
        ("quantizer=pct", "unknown recipe setting quantizer 'pct': did you mean pact?"),
        ("first_last_bits=16x", "expected int"),
        ("first_last_bits=9", "got 9, expected 1 to 8"),
        ("activation_bits=8,4,8", "recipe setting activation_bits: 8 is given twice"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            override(config, [setting])
        assert reason in str(caught.value)


def test_steps_are_limited_after_every_update() -> None:
    """A fused optimizer changes parameters without a new version of theirs."""
    quantizer = FakeQuantizer("l", "activation", (4, 2), False, ceiling=6.0).train()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0, fused=True)
    for _ in range(2):
        quantizer(torch.rand(4, 4))
        assert torch.equal(quantizer.step, torch.tensor([[6.0 / 15], [2.0]]).clamp(max=1))
        quantizer.step.grad = -torch.full_like(quantizer.step, 9.0)
        optimizer.step()
        assert bool((quantizer.step > 5).all())
        with torch.no_grad():
            quantizer(torch.rand(4, 4))
        assert torch.allclose(quantizer.step, torch.tensor([[6.0 / 15], [2.0]]))
        with torch.no_grad():
            quantizer.step.clamp_(max=1)
