"""In-place operators: the network that is captured computes what they do, or is refused."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from conftest import run_qtool
from exact import require_equal, traced
from tiny_training import tiny_config
from torch import Tensor, fx, nn
from torch.nn import functional

from qtool.core.errors import UnsupportedError
from qtool.core.selection import Selection
from qtool.nn.capture.capture import capture
from qtool.nn.control import calibrate, select
from qtool.nn.prepare.admit import why_not
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.training.losses import Objective

HERE = "test_in_place"
SHAPE, CLASSES = (3, 6, 6), 4
F = functional
Form = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Layers that `form` calls on images; torch.fx traces it."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.a, self.d = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.b, self.c, self.four = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(4, 8, 1)
        self.bn, self.identity, self.drop = nn.BatchNorm2d(8), nn.Identity(), nn.Dropout(0.5)
        self.relu, self.silu = nn.ReLU(inplace=True), nn.SiLU(inplace=True)
        self.hardswish, self.dropped = nn.Hardswish(inplace=True), nn.Dropout(inplace=True)
        self.fc = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.form(self, x).mean((2, 3)))
        return y


class Exported(Net):
    """Control flow on sizes: torch.export's task."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return super().forward(x if x.shape[1] > 2 and other is None else -x)


FORMS: dict[str, Form] = {}
REFUSED: dict[str, Form] = {}


def good(form: Form) -> Form:
    return FORMS.setdefault(form.__name__, form)


def bad(form: Form) -> Form:
    return REFUSED.setdefault(form.__name__, form)


@good
def image(net: Any, x: Tensor) -> Tensor:
    x.clamp_(0.45, 0.55)
    return F.relu(net.a(x)) + net.d(x)


@good
def first_layer_hardswish(net: Any, x: Tensor) -> Tensor:
    net.hardswish(x)
    return F.relu(net.a(x))


@good
def relu_of_what_was_read(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    p = net.b(y)
    F.relu_(p)
    q = p + y
    F.relu_(y)
    return q + y


@good
def hardtanh(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.hardtanh_(y, -0.2, 0.3)
    return net.b(y) + y


@good
def norm_relu_sum(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.bn(y)
    torch.relu_(z)
    y += z
    return net.b(y)


@good
def identity(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    same = net.identity(y)
    F.relu_(net.identity(y))
    return net.b(y) + same


@good
def modules(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    net.silu(y)
    z = net.d(x) + y
    net.relu(z)
    w = net.b(z) + z
    return net.relu(w) + net.c(w)


@good
def dropout(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    net.dropped(y)
    F.relu_(y)
    return net.b(y)


@good
def statements(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = F.relu_(y)
    y += net.d(x)
    y.clamp_(0, 0.4)
    w = y
    w += net.b(z)
    return torch.cat([y, z, w], 1)


@good
def products(net: Any, x: Tensor) -> Tensor:
    y = F.relu(net.a(x))
    g = torch.sigmoid(net.b(y))
    y.mul_(g)
    y.add_(g)
    y *= g
    return net.c(y)


@good
def overloads(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.sigmoid_().sub_(0.5)
    y.pow_(2)
    y.add_(net.d(x), alpha=2)
    y -= 0.1
    return net.b(y.masked_fill_(y < 0, 0))


@good
def options(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.silu(y, True)
    z = net.b(y)
    F.leaky_relu(z, 0.1, inplace=True)
    return net.c(y) + F.hardtanh(y, -0.1, 0.2, True) + z


@good
def views_taken_before(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    v = y.view(-1, 4, 12, 6).transpose(2, 3)
    left, right = y.chunk(2, 1)
    F.hardtanh(y, -0.2, 0.5, inplace=True)
    z = net.four(left) + net.four.bias.view(1, -1, 1, 1)[:, :8] * 0 + net.b(y)
    return torch.cat([v.transpose(2, 3).reshape(-1, 8, 6, 6), z, right], 1)


@good
def disjoint_parts(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    left, right = y.chunk(2, 1)
    F.relu_(left)
    z = torch.cat([right, left], 1)
    w = net.b(z)
    one, two = w[:, :3], w[:, 3:]
    two.clamp_(-0.1, 0.1)
    return torch.cat([one, two], 1)


@good
def copies(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu_(y.clone())
    z = y.clone()
    z.relu_()
    return net.b(y) + z


@good
def sizes(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    count = y.size(1)
    half = count
    half //= 2
    return net.b(y.view(-1, half, 2, 6, 6).reshape(-1, count, 6, 6))


@good
def keywords(net: Any, x: Tensor) -> Tensor:
    y = net.bn(input=net.a(input=x))
    y = F.relu(input=torch.clamp(input=y, min=-0.2, max=0.3), inplace=True)
    return net.b(input=F.conv2d(input=y, weight=net.c.weight, bias=net.c.bias))


@bad
def slices(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu_(y[:, :4])
    return net.b(y)


@bad
def image_channel(net: Any, x: Tensor) -> Tensor:
    x[:, :1].clamp_(0.4, 0.5)
    return net.a(x)


@bad
def assigned(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y[:, :4] = F.relu(y[:, :4])
    return net.b(y)


@bad
def number_assigned(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y[:, 2] = 0
    return net.b(y)


@bad
def half(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    left, _ = y.chunk(2, 1)
    F.relu_(left)
    return net.b(y)


@bad
def flattened(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu_(y.flatten(1))
    return net.b(y)


@bad
def permuted(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu_(y.permute(0, 2, 3, 1))
    return net.b(y)


@bad
def perhaps_a_view(net: Any, x: Tensor) -> Tensor:
    y = F.relu(net.a(x))
    v = y.flatten(2).view(-1, 8, 6, 6)
    F.hardtanh_(y, 0, 0.2)
    return net.b(v)


@bad
def dropped_out(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu_(net.drop(y))
    return net.b(y)


@bad
def told_where_to(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    torch.sub(y, 0.1, out=y)
    return net.b(y)


@bad
def filled(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.copy_(net.d(x))
    return net.b(y)


def made(kind: type[Net], form: Form) -> Net:
    torch.manual_seed(0)
    net = kind(form).eval()
    own(net, torch.rand(2, *SHAPE))
    nn.init.normal_(net.bn.weight)
    nn.init.normal_(net.bn.running_mean)
    return net


def own(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = net(x.clone())
    return y


KINDS = pytest.mark.parametrize("kind", [Net, Exported])


@KINDS
@pytest.mark.parametrize("name", FORMS)
def test_the_effect_is_kept(name: str, kind: type[Net]) -> None:
    net, x = made(kind, FORMS[name]), torch.rand(4, *SHAPE)
    captured, given = capture(net, SHAPE).eval(), x.clone()
    with torch.no_grad():
        found = captured(x)
    assert torch.allclose(found, own(net, x), rtol=1e-5, atol=1e-6)
    assert torch.equal(x, given)
    assert net.relu.inplace and net.dropped.inplace


INTEGERS = ("image", "identity", "modules", "statements", "disjoint_parts", "keywords")


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_those_of_the_effect(name: str) -> None:
    net = made(Net, FORMS[name])
    assert why_not(net, QuantSpec(), SHAPE, CLASSES) == []
    prepared, x = prepare(net, QuantSpec((8,), (8,)), SHAPE), torch.rand(16, *SHAPE)
    calibrate(prepared, x)
    assert require_equal(prepared, traced(prepared, SHAPE), Selection(), x[:3]) > 0
    select(prepared.eval(), Selection())
    wanted = own(net, x)
    assert (own(prepared, x) - wanted).abs().max() < 0.1 * wanted.abs().max()


@KINDS
@pytest.mark.parametrize("name", REFUSED)
def test_writes_that_only_other_tensors_show_are_refused(name: str, kind: type[Net]) -> None:
    net = made(kind, REFUSED[name])
    with pytest.raises(UnsupportedError, match="in place") as error:
        capture(net, SHAPE)
    assert "\n" not in str(error.value)
    found = why_not(net, QuantSpec(), SHAPE, CLASSES, allow_float=True)
    assert found == [str(error.value)]


@fx.wrap
def hidden(y: Tensor) -> Tensor:
    return y[:, :4]


def test_writes_that_the_graph_does_not_show_are_named() -> None:
    def form(net: Any, x: Tensor) -> Tensor:
        y: Tensor = net.a(x)
        F.relu_(hidden(y))
        z: Tensor = net.b(y)
        return z

    (found,) = why_not(made(Net, form), QuantSpec(), SHAPE, CLASSES, allow_float=True)
    assert "layer b differs from the network's own by" in found
    assert "operators work in place (relu_); let them make new tensors instead" in found


def test_torch_s_loggers_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    logger, handler = logging.getLogger("torch"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logger, "handlers", [handler])

    def refuse(*_: object, **__: object) -> None:
        logging.getLogger("torch.fx").warning("Unable to find user code corresponding to {u0}")
        raise RuntimeError("Could not guard")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(UnsupportedError, match="Could not guard"):
        capture(made(Exported, identity), SHAPE)
    assert told == []
    logger.warning("others are heard")
    assert told == ["others are heard"]


def test_a_teacher_leaves_the_images_alone() -> None:
    teacher = made(Net, lambda net, x: net.a(x.zero_()))
    x, labels = torch.rand(4, *SHAPE), torch.zeros(4, dtype=torch.int64)
    config, before = tiny_config("distill_weight=1"), x.clone()
    Objective(config, lambda *_: teacher).on(x, labels)(torch.zeros(4, CLASSES))
    assert torch.equal(x, before)


def network() -> nn.Module:
    return made(Net, image)


def data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], int]:
    x = np.random.default_rng(0).integers(0, 256, (16, *SHAPE), np.uint8)
    return (x, np.arange(16) % CLASSES), (x, np.arange(16) % CLASSES), CLASSES


def test_a_file_has_the_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    torch.save(network().state_dict(), "w.pt")
    done = run_qtool(
        "train", "qat", "--model", f"{HERE}:network", "--data", f"{HERE}:data", "--out", "run",
        "--set", "weights=w.pt", "--set", "epochs=0", "--set", "bits=w8a8",
        "--set", "batch_size=8",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = run_qtool("export", "run", "--target", "onnx", "-o", "m.onnx")
    assert done.code == 0, done.err
    x = data()[1][0].astype(np.float32) / 255
    session = ort.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    wanted = own(network(), torch.from_numpy(x)).numpy()
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
