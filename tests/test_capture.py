"""capture(): the user's classes as a graph, by torch.fx or, where that fails, torch.export."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.errors import UnsupportedError
from qtool.core.selection import Selection
from qtool.nn.capture.capture import capture
from qtool.nn.control import calibrate, quant_layers, select
from qtool.nn.prepare.prepare import QuantSpec, prepare

SHAPE = (3, 8, 8)


class Standardised(nn.Conv2d):
    """A layer whose forward() is its own."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation,
            self.groups,
        )  # fmt: skip


class Initialised(nn.Conv2d):
    """A layer that only differs in how it starts."""


class DropPath(nn.Module):
    """As in timm: the identity in evaluation, random in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(len(x), 1, 1, 1) if self.training else x


class Plain(nn.Module):
    """What torch.fx traces."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.scale = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.body, self.tail = Standardised(8, 8, 3, padding="same"), Initialised(8, 8, 1)
        self.path, self.drop = DropPath(), nn.Dropout(0.5)
        self.hardswish, self.fc = nn.Hardswish(inplace=True), nn.Linear(8, 4)
        self.register_buffer("offset", torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.hardswish(self.stem(x))
        x = functional.conv2d(x, self.scale, padding=1, groups=8)
        x += self.path(functional.silu(self.tail(self.body(x))))
        a, b = x.chunk(2, 1)
        batch, channels, height, width = x.size()
        x = torch.cat([functional.relu6(b), functional.leaky_relu(a, 0.2)], 1)
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        x = x.view(batch, channels, height, width) + self.offset
        x = functional.max_pool2d(functional.pad(x[:, :, 1:], (1, 1)), 2)
        x = functional.interpolate(x, scale_factor=2) * torch.sigmoid(x.mean((2, 3), True))
        x = functional.avg_pool2d(functional.hardsigmoid(x).clamp(0, 3), 2)
        x = functional.adaptive_avg_pool2d(x, 1)
        return cast(Tensor, self.fc(self.drop(x.flatten(1))))


class Branchy(Plain):
    """Control flow on sizes, and an argument with a default: torch.export's task."""

    def forward(self, x: Tensor, flip: Tensor | None = None) -> Tensor:
        if x.shape[2] > 4 and flip is None:
            return super().forward(x)
        return super().forward(-x)


MODELS = pytest.mark.parametrize("kind", [Plain, Branchy])


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind()
    norm = cast(nn.Sequential, model.stem)[1]
    nn.init.normal_(norm.running_mean)
    return model


@MODELS
def test_captured_models_compute_the_same(kind: type[nn.Module]) -> None:
    model = made(kind).eval()
    captured, x = capture(model, SHAPE), torch.randn(5, *SHAPE)
    assert torch.equal(captured(x), model(x))
    modules = {str(node.target) for node in captured.graph.nodes if node.op == "call_module"}
    assert {"stem.0", "stem.1", "body", "tail", "scale", "fc"} <= modules
    assert type(captured.get_submodule("body")) is nn.Conv2d


@MODELS
def test_captured_models_train_the_user_s_parameters(kind: type[nn.Module]) -> None:
    model = made(kind)
    captured, x = capture(model, SHAPE), torch.randn(5, *SHAPE)
    assert captured.training and all(module.training for module in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(captured.parameters(), 0.1)
    captured.train()(x).square().sum().backward()
    optimizer.step()
    after = model.state_dict()
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert same == {"offset"}
    renamed = {"scale": "scale.weight"}
    assert {renamed.get(name, name) for name in after} == set(captured.state_dict())
    # Dropout is on in training, off in evaluation.
    assert not torch.equal(captured(x), captured(x))
    assert torch.equal(captured.eval()(x), model.eval()(x))


def test_frozen_parts_stay_frozen() -> None:
    model = made(Plain)
    cast(nn.Sequential, model.stem)[1].eval()
    captured = capture(model)
    assert captured.training and not captured.get_submodule("stem.1").training
    assert captured.get_submodule("fc").training


def test_random_depth_stays_random() -> None:
    captured = capture(made(Plain))
    assert isinstance(captured.get_submodule("path"), DropPath)


@MODELS
def test_captured_models_are_prepared(kind: type[nn.Module]) -> None:
    model = made(kind)
    prepared = prepare(model, QuantSpec(), SHAPE)
    calibrate(prepared, torch.rand(8, *SHAPE))
    names = [layer.name for layer in quant_layers(prepared)]
    assert sorted(names) == ["body", "fc", "scale", "stem.0", "tail"]
    x = torch.rand(4, *SHAPE)
    assert torch.allclose(prepared.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    select(prepared, Selection())
    assert not torch.equal(prepared(x), model(x))


class Counter(nn.Module):
    """State that evaluation changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, unused: int = 0) -> Tensor:
        self.count += 1
        return x * self.count


class Optional(nn.Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x * scale


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Shared(nn.Module):
    """One weight, two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(self.conv(x), self.conv.weight)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Branchy(), None, "model Branchy cannot be traced: symbolically traced variables "
         "cannot be used as inputs to control flow; pass input_shape, so that torch.export"),
        (Optional(), None, "model Optional cannot be traced: forward() takes x, scale; pass"),
        (DataDependent(), None, "model DataDependent cannot be traced: symbolically traced"),
        (DataDependent(), SHAPE, "model DataDependent cannot be traced by torch.export: "),
        (Counter(), SHAPE, "model Counter changes count in evaluation; a deployed model has"),
        (Shared(), SHAPE, "layer conv is called more than once; its inputs would share one"),
    ],
)  # fmt: skip
def test_refusals(model: nn.Module, shape: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        prepare(model, QuantSpec(), shape)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
