"""prepare(): for every operator the grids around it, in training and in the traced graph."""

import copy
from collections.abc import Callable
from typing import cast

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.errors import UnsupportedError, UserError
from qtool.core.selection import LayerBits, Selection
from qtool.export.trace import trace
from qtool.nn.control import calibrate, layer_macs, quant_layers, quantizers, select
from qtool.nn.grid_fit import fit_values, fit_weights
from qtool.nn.modules.affine import QuantAffine
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.weight_quant import WeightQuantizer
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.quantizers.binary import binary
from qtool.quantizers.lsq import lsq, mse_grid, mse_step

SHAPE = (3, 8, 8)


class Around(nn.Module):
    """conv -> [relu ->] operator -> conv."""

    def __init__(self, op: Callable[[Tensor], Tensor], relu: bool) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.op = op if isinstance(op, nn.Module) else None
        self.function = op
        self.after = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.before(x))
        y: Tensor = self.after(self.function(x) if self.op is None else self.op(x))
        return y


def ready(
    model: nn.Module, spec: QuantSpec | None = None, selection: Selection | None = None
) -> torch.fx.GraphModule:
    """Prepare, calibrate and select."""
    torch.manual_seed(0)
    prepared = prepare(model, spec or QuantSpec(), SHAPE)
    calibrate(prepared, torch.rand(8, *SHAPE))
    select(prepared, selection or Selection())
    return cast(torch.fx.GraphModule, prepared.eval())


def operators(model: ir.Model) -> str:
    """Return op types in order; an activation's FakeQuant as its role, signed ones with -."""
    words = []
    for node in model.graph:
        role = node.attributes.get_string("role", "")
        if node.op_type == "FakeQuant":
            words.append(str(role) + ("-" if node.attributes.get_int("signed", 0) else "+"))
        elif node.op_type != "Constant":
            words.append(node.op_type)
    return " ".join(word for word in words if word != "weight-")


def shuffle(x: Tensor) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


def squeeze_excite(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True)).expand_as(x)


def halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, a], 1)


# name: the operator; what stands between the convolutions after a plain convolution; the sign
# of the second convolution's input after a plain one, and after a ReLU.
OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "hardswish": (functional.hardswish, "glue- HardSigmoid glue+ Mul", "-+"),
    "Hardswish": (nn.Hardswish(), "glue- HardSigmoid glue+ Mul", "-+"),
    "hardswish by hand": (
        lambda x: x * functional.relu6(x + 3) / 6, "glue- HardSigmoid glue+ Mul", "-+",
    ),
    "h-swish by hand": (
        lambda x: x * ((x + 3).clamp(0, 6) / 6), "glue- HardSigmoid glue+ Mul", "-+",
    ),
    "Hardsigmoid": (nn.Hardsigmoid(), "glue- HardSigmoid", "++"),
    "sigmoid": (torch.sigmoid, "glue- Sigmoid", "++"),
    "SiLU": (nn.SiLU(), "glue- Sigmoid Mul", "--"),
    "silu by hand": (lambda x: x * x.sigmoid(), "glue- Sigmoid Mul", "--"),
    "LeakyReLU": (nn.LeakyReLU(0.1), "glue- LeakyRelu", "--"),
    "pad": (lambda x: functional.pad(x, (1, 0, 2, 1)), "Pad", "-+"),
    "ZeroPad2d": (nn.ZeroPad2d(1), "Pad", "-+"),
    "mean": (lambda x: x.mean((2, 3), keepdim=True), "glue- ReduceMean", "-+"),
    "mean, flat": (
        lambda x: x.mean([2, 3])[:, :, None, None], "glue- ReduceMean Reshape Reshape Reshape",
        "-+",
    ),
    "mean of mean": (
        lambda x: x.mean(3).mean(2).view(-1, 4, 1, 1), "glue- ReduceMean Reshape Reshape",
        "-+",
    ),
    "avg_pool2d": (lambda x: functional.avg_pool2d(x, 2), "glue- AveragePool", "-+"),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d((4, 2)), "glue- AveragePool", "-+"),
    "shuffle": (shuffle, "Reshape Transpose Reshape", "-+"),
    "ChannelShuffle": (nn.ChannelShuffle(2), "Reshape Transpose Reshape", "-+"),
    "chunk and cat": (halves, "glue- Split Concat", "-+"),
    "slices": (lambda x: x[:, :, ::2, 1:], "Slice Slice", "-+"),
    "interpolate": (lambda x: functional.interpolate(x, size=(16, 24)), "Resize", "-+"),
    "Upsample": (nn.Upsample(scale_factor=3), "Resize", "-+"),
    "permute": (lambda x: x.permute(0, 1, 3, 2), "Transpose", "-+"),
    "clamp": (lambda x: x.clamp(0, 3), "Clip", "++"),
    "add_": (lambda x: x.add_(x), "glue- Add", "--"),
    "gate": (squeeze_excite, "glue- ReduceMean glue- Sigmoid glue+ Mul", "-+"),
    "norm": (
        nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU()),
        "glue- MaxPool BatchNormalization Relu", "++",
    ),
    "relu behind a move": (lambda x: functional.max_pool2d(x, 2).relu(), "Relu MaxPool", "++"),
    "dropout": (lambda x: functional.dropout(x, 0.5), "", "-+"),
    # What has no integer form stays, between grids.
    "softmax": (lambda x: functional.softmax(x, 1), "glue- Softmax", "++"),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), "glue- Resize", "--"),
}  # fmt: skip


class Branches(nn.Module):
    """Every operator on the same image, each between convolutions of its own."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Around(op, relu) for op, _, _ in OPERATORS.values())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(branch(x) for branch in self.branches)


@pytest.fixture(scope="module")
def traced_operators() -> dict[str, str]:
    """What stands in each branch of one traced graph of them all."""
    words = operators(trace(ready(Branches(relu=False)), SHAPE))
    parts = [part.strip() for part in words.split("output-")]
    assert parts.pop() == ""
    return dict(zip(OPERATORS, parts, strict=True))


@pytest.mark.parametrize("name", OPERATORS)
def test_grids_of_an_operator(name: str, traced_operators: dict[str, str]) -> None:
    op, between, (plain, rectified) = OPERATORS[name]
    words = ["activation+", "Conv", *between.split(), f"activation{plain}", "Conv"]
    assert traced_operators[name] == " ".join(words)
    after_relu = prepare(Around(op, relu=True), QuantSpec(), SHAPE)
    signed = {q.name: q.signed for q in quantizers(after_relu) if q.role == "activation"}
    assert signed["after"] is (rectified == "-")


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "dropout"])
def test_switched_off_is_the_same_function(name: str) -> None:
    model = Around(OPERATORS[name][0], relu=False).eval()
    x = torch.randn(2, *SHAPE)
    expected = model(x)
    got = prepare(model, QuantSpec(), SHAPE).eval()(x)
    # hardswish(x) and x * hardsigmoid(x) differ in the last bit.
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_gates_have_the_fixed_grid_of_the_device() -> None:
    prepared = ready(Around(nn.Hardswish(), relu=False))
    gate = next(q for q in quantizers(prepared) if q.name == "glue_hardsigmoid")
    assert gate.scale(8) == np.float32(1 / 255) and not gate.signed
    assert not isinstance(gate.step, nn.Parameter)


def test_dropout_functions_follow_the_mode() -> None:
    model = Around(lambda x: functional.dropout(x, 0.5, training=True), relu=False)
    prepared, x = prepare(model, QuantSpec()), torch.rand(2, *SHAPE)
    assert torch.equal(prepared.eval()(x), prepared(x))
    assert not torch.equal(prepared.train()(x), prepared(x))


class Gate(nn.Module):
    """torchvision's SqueezeExcitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return cast(Tensor, self.scale_activation(scale) * x)


def conv_norm(inputs: int, outputs: int, *tail: nn.Module, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *tail)


class InvertedResidual(nn.Module):
    """MobileNet-v3's block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8, nn.Hardswish(inplace=True))
        self.block = nn.Sequential(
            conv_norm(8, 8, nn.Hardswish(inplace=True), groups=8), Gate(8), conv_norm(8, 8)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return cast(Tensor, x + self.block(x))


class Dense(nn.Module):
    """DenseNet's block: every layer reads all results before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(self.relu(self.norm1(x)))
        z = self.conv2(self.relu(self.norm2(torch.cat([x, y], 1))))
        return cast(Tensor, self.last(torch.cat([x, y, z], 1)))


class Shuffle(nn.Module):
    """ShuffleNet-v2's unit, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8, nn.ReLU())
        self.one, self.two = conv_norm(4, 4, nn.ReLU()), conv_norm(4, 4, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in (self.one, self.two):
            left, right = x.chunk(2, dim=1)
            x = shuffle(torch.cat((left, branch(right)), dim=1))
        return x


class PreActivation(nn.Module):
    """A pre-activation residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(functional.relu(self.bn1(x)))
        return cast(Tensor, x + self.conv2(functional.relu(self.bn2(y))))


NETWORKS = {
    InvertedResidual: (
        "activation+ Conv BatchNormalization glue- HardSigmoid glue+ Mul glue- "
        "activation- Conv BatchNormalization glue- HardSigmoid glue+ Mul glue- "
        "ReduceMean activation- Conv Relu activation+ Conv glue- HardSigmoid glue+ Mul "
        "activation- Conv BatchNormalization glue- Add output-"
    ),
    Dense: (
        "activation+ Conv glue- BatchNormalization Relu activation+ Conv glue- Concat glue- "
        "BatchNormalization Relu activation+ Conv Concat activation- Conv output-"
    ),
    Shuffle: (
        "activation+ Conv BatchNormalization Relu glue+ Split activation+ Conv "
        "BatchNormalization Relu Concat glue+ Reshape Transpose Reshape Split activation+ "
        "Conv BatchNormalization Relu Concat output+ Reshape Transpose Reshape"
    ),
    PreActivation: (
        "activation+ Conv glue- BatchNormalization Relu activation+ Conv "
        "BatchNormalization Relu activation+ Conv glue- Add output-"
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_grids_of_a_network(network: type[nn.Module]) -> None:
    assert operators(trace(ready(network()), SHAPE)) == NETWORKS[network]


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_train_and_are_copied(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    prepared = ready(network()).train()
    before = {name: p.detach().clone() for name, p in prepared.named_parameters()}
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    prepared(torch.rand(4, *SHAPE)).square().mean().backward()
    optimizer.step()
    moved = [n for n, p in prepared.named_parameters() if not torch.equal(p, before[n])]
    assert {name for name in before if name.endswith("weight")} <= set(moved)
    assert any(name.startswith("glue_") for name in moved)
    twin, x = copy.deepcopy(prepared).eval(), torch.rand(2, *SHAPE)
    assert torch.equal(twin(x), prepared.eval()(x))
    for quantizer in quantizers(prepared):
        with torch.no_grad():
            quantizer.step.mul_(1.5)
    assert not torch.equal(twin(x), prepared(x))
    assert [name for name, _ in layer_macs(prepared, SHAPE)] == [
        layer.name for layer in quant_layers(prepared)
    ]


def test_without_glue_only_layers_are_quantized() -> None:
    prepared = prepare(InvertedResidual(), QuantSpec(), integer_only=False)
    assert {q.role for q in quantizers(prepared)} == {"activation", "weight"}
    prepared(torch.rand(2, *SHAPE))


def test_affine_computes_the_device_s_integers() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.7, -0.3, 0.2]))
        norm.bias.normal_()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 2)
    prepared = ready(nn.Sequential(norm, nn.ReLU(), nn.Conv2d(3, 4, 1)))
    affine = prepared.get_submodule("0")
    assert isinstance(affine, QuantAffine)
    seen: list[Tensor] = []
    affine.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.rand(5, *SHAPE)
    prepared(x)
    # The same in numpy, from the definition: depthwise, codes +-127, int32 accumulators.
    gamma, beta, mean, var = (
        t.detach().numpy().astype(np.float64)
        for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    ratio = gamma / np.sqrt(var + norm.eps)
    unit = np.float32(1 / 255) * (np.abs(ratio) / 127)
    codes = np.rint(x.numpy() / np.float32(1 / 255)).astype(np.int64)
    weight = (127 * np.sign(ratio)).astype(np.int64)
    bias = np.rint((beta - mean * ratio) / unit).astype(np.int64)
    shape = (1, 3, 1, 1)
    expected = codes * weight.reshape(shape) + bias.reshape(shape)
    got = seen[0].detach().numpy().astype(np.float64) / unit.reshape(shape)
    assert np.array_equal(np.rint(got), expected)
    assert np.abs(got - expected).max() < 0.1  # whole units, the bias included
    assert len(np.unique(expected)) > 300


def test_asymmetric_grids_are_calibrated_traced_and_saved() -> None:
    model = Around(nn.Hardswish(), relu=False)
    prepared = ready(model, QuantSpec(asymmetric=True))
    chosen = {q.name: q for q in quantizers(prepared) if q.role == "glue"}
    product = next(q for q in quantizers(prepared) if q.name.startswith("glue_before"))
    assert product.zero_points != product.default_zero_points
    assert not chosen["glue_hardsigmoid"].asymmetric
    traced = trace(prepared, SHAPE)
    zeros = {
        node.attributes.get_string("name"): tuple(node.attributes.get_ints("zero_points", ()))
        for node in traced.graph
        if node.op_type == "FakeQuant" and "zero_points" in node.attributes
    }
    assert zeros[product.name] == product.zero_points
    assert "glue_hardsigmoid" not in zeros
    state = prepared.state_dict()
    restored = prepare(model, QuantSpec(asymmetric=True))
    restored.load_state_dict(state)
    select(restored.eval(), Selection())
    x = torch.rand(2, *SHAPE)
    assert torch.equal(restored(x), prepared(x))


def test_symmetric_grids_are_traced_as_ever() -> None:
    traced = trace(ready(Around(nn.Hardswish(), relu=False)), SHAPE)
    assert not any("zero_points" in node.attributes for node in traced.graph)


def test_a_state_from_before_zero_points_loads() -> None:
    prepared = ready(InvertedResidual())
    old = {k: v for k, v in prepared.state_dict().items() if not k.endswith("zero_point")}
    assert len(old) < len(prepared.state_dict())
    fresh = prepare(InvertedResidual(), QuantSpec())
    fresh.load_state_dict(old)
    select(fresh.eval(), Selection())
    x = torch.rand(2, *SHAPE)
    assert torch.equal(fresh(x), prepared(x))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_asymmetric_never_has_the_larger_error(bits: int) -> None:
    torch.manual_seed(0)
    x = functional.hardswish(torch.randn(5000) * 2)
    step, zero_point = mse_grid(x, bits)
    top = (1 << bits) - 1
    assert 0 <= zero_point <= top
    error = (lsq(x, step, zero_point, top - zero_point) - x).square().sum()
    half = 1 << (bits - 1)
    symmetric = mse_step(x[None], half, half - 1)[0, 0]
    symmetric_error = (lsq(x, symmetric, half, half - 1) - x).square().sum()
    # Hardswish is never below -0.375: half of a symmetric grid's codes are wasted on it.
    assert float(error) < 0.5 * float(symmetric_error)


def test_asymmetric_window_is_that_of_the_device() -> None:
    quantizer = FakeQuantizer("a", "glue", (4,), signed=True, asymmetric=True)
    assert quantizer.limits(4) == (8, 7)
    fit_values(quantizer, torch.linspace(-0.375, 3, 1000))
    (zero_point,) = quantizer.zero_points
    assert 0 < zero_point < 4
    assert quantizer.limits(4) == (zero_point, 15 - zero_point)
    codes = quantizer.quantize_at(torch.tensor([-9.0, 0.0, 9.0]), 4) / quantizer.scale(4)
    assert codes.round().tolist() == [-zero_point, 0, 15 - zero_point]


def test_one_bit_weights_are_signs() -> None:
    quantizer = WeightQuantizer("a", (1,), channels=2)
    weight = torch.tensor([[0.0, -0.1, 3.0], [-2.0, 0.0, -0.0]])
    fit_weights(quantizer, weight)
    got = quantizer.quantize_at(weight, 1)
    expected = torch.tensor([[1.0, -1, 1], [-1, 1, 1]])
    assert torch.equal(got, expected * weight.abs().mean(1, keepdim=True))


def test_one_bit_gradients() -> None:
    w = torch.tensor([[0.5, -2.0, 0.0]], requires_grad=True)
    s = torch.tensor([[0.7]], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 4.0]])
    binary(w, s).backward(upstream)
    assert w.grad is not None and torch.equal(w.grad, upstream)
    assert s.grad is not None and float(s.grad) == pytest.approx((1 - 2 + 4) / 3**0.5)


def test_bits_of_single_layers_and_weight_candidates() -> None:
    spec = QuantSpec((8, 4), weight_bits=(4, 2, 1), layers={"block.2.0": LayerBits(3, 5)})
    prepared = ready(InvertedResidual(), spec)
    bits = {q.name: {} for q in quantizers(prepared)}  # type: ignore[var-annotated]
    for quantizer in quantizers(prepared):
        bits[quantizer.name][quantizer.role] = quantizer.bits
    assert bits["stem.0"] == {"activation": (8,), "weight": (8,)}
    assert bits["block.1.fc1"] == {"activation": (8, 4), "weight": (4, 2, 1)}
    assert bits["block.2.0"] == {"activation": (5,), "weight": (3,)}
    select(prepared, Selection(default=LayerBits(1, 4)))
    layers = {layer.name: layer for layer in quant_layers(prepared)}
    assert layers["block.1.fc1"].weight_quant.selected == 1
    assert layers["block.1.fc1"].input_quant.selected == 4
    assert layers["block.2.0"].weight_quant.selected == 3
    with pytest.raises(UserError, match=r"block.0.0: weight bits 5 .* trained: 4, 2, 1"):
        select(prepared, Selection(default=LayerBits(5, 4)))
    assert layers["block.1.fc1"].weight_quant.selected == 1


def test_normalised_images_have_a_learned_signed_grid() -> None:
    prepared = ready(PreActivation(), QuantSpec(input_step=None))
    first = quant_layers(prepared)[0].input_quant
    assert first.signed and isinstance(first.step, nn.Parameter)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(self.norm(self.norm(x))))


@pytest.mark.parametrize(
    ("model", "spec", "shape", "kind", "message"),
    [
        (Around(nn.AdaptiveAvgPool2d(2), False), QuantSpec(), None, UnsupportedError,
         "layer op: AdaptiveAvgPool2d to 2: needs the image size; pass input_shape"),
        (Around(nn.AdaptiveAvgPool2d(3), False), QuantSpec(), SHAPE, UnsupportedError,
         "layer op: AdaptiveAvgPool2d to 3: does not divide its 8x8 input"),
        (Twice(), QuantSpec(), None, UnsupportedError, "layer norm is called more than once"),
        (PreActivation(), QuantSpec(layers={"conv9": LayerBits(4, 4)}), None, UserError,
         "unknown layer or pattern in QuantSpec.layers 'conv9': did you mean conv2 or conv1?"),
        (PreActivation(), QuantSpec(weight_bits=9), None, UserError,
         "layer stem: weight bits 9 not supported, expected 1 to 8"),
        (PreActivation(), QuantSpec(activation_bits=()), None, UserError,
         "layer stem: activation bits: no candidates; give at least one"),
        (Around(nn.AdaptiveAvgPool2d(2), False), QuantSpec(), (5, 8, 8), UnsupportedError,
         "input 5x8x8 does not fit the model: "),
    ],
)  # fmt: skip
def test_refusals(
    model: nn.Module,
    spec: QuantSpec,
    shape: tuple[int, ...] | None,
    kind: type[UserError],
    message: str,
) -> None:
    with pytest.raises(kind) as caught:
        prepare(model, spec, shape)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
