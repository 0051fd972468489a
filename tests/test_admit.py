"""A network that cannot be quantized is refused, with every reason, and nothing is left."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_qtool
from image_sets import write_folders
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from qtool.models import model_factory
from qtool.nn.capture.capture import capture
from qtool.nn.capture.compare import Difference, compare, sample_images
from qtool.nn.prepare.admit import why_not
from qtool.nn.prepare.prepare import QuantSpec, prepare

SHAPE, CLASSES, HERE = (3, 16, 16), 5, "test_admit"


class Net(nn.Module):
    """A small network whose result `change` alters."""

    def __init__(self, change: Callable[[Tensor], object] = lambda y: y) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc, self.change = nn.Linear(8, CLASSES), change

    def forward(self, x: Tensor) -> object:
        return self.change(self.fc(torch.relu(self.n(self.a(x))).mean((2, 3))))


class Counting(Net):
    """Evaluation counts images."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> object:
        self.get_buffer("seen").add_(len(x))
        return super().forward(x)


class Branching(Net):
    """Another path for dark images."""

    def forward(self, x: Tensor) -> object:
        return super().forward(x if x.mean() > 0.1 else 1 - x)


class Floating(nn.Module):
    """Operators without an integer form, and layers that cannot be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.GELU()
        self.b = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.GELU())
        self.c = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.n = nn.BatchNorm2d(8, track_running_stats=False)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.act(self.a(x)))
        x = functional.softplus(self.n(self.c(self.c(x)))) * 0.5
        y: Tensor = self.fc(functional.adaptive_avg_pool2d(x, 3).mean((2, 3)))
        return y


def spoilt(name: str, index: int, value: float) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net()
        with torch.no_grad():
            net.state_dict()[name].view(-1)[index] = value
        return net

    return make


def _lazy() -> nn.Module:
    net = Net()
    net.fc = nn.LazyLinear(CLASSES)
    return net


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "tuple": (
        lambda: Net(lambda y: (y, y[:, 0])),
        "returns a tuple of 2 (Tensor (2, 5), Tensor (2)), expected one tensor (N, 5)",
    ),
    "dict": (lambda: Net(lambda y: {"logits": y}), "forward() returns a dict of 1 (logits)"),
    "none": (lambda: Net(lambda y: None), "forward() returns a NoneType"),
    "map": (lambda: Net(lambda y: y[:, :, None, None]), "(2, 5, 1, 1), expected (2, 5)"),
    "classes": (lambda: Net(lambda y: y[:, :3]), "it has 3 outputs, the data set 5 classes"),
    "merged": (lambda: Net(lambda y: y.flatten()), "a tensor (10), expected (2, 5)"),
    "type": (lambda: Net(lambda y: y.double()), "its output is float64, expected float32"),
    "infinite": (lambda: Net(lambda y: y / 0), "its output is not finite"),
    "nan": (spoilt("a.bias", 3, float("nan")), "a.bias[3] is nan (1 of its 8 values"),
    "inf": (spoilt("a.weight", 30, float("inf")), "a.weight[1, 0, 1, 0] is inf"),
    "nan statistics": (spoilt("n.running_mean", 2, float("nan")), "n.running_mean[2] is nan"),
    "large": (spoilt("fc.weight", 8, 1e30), "fc.weight[1, 0] is 1e+30 (1 of its 40 values"),
    "variance": (spoilt("n.running_var", 1, -0.5), "n.running_var[1] is -0.5 with eps 1e-05"),
    "double": (lambda: Net().double(), "parameter a.weight is float64, expected float32"),
    "half": (lambda: Net().half(), "parameter a.weight is float16, expected float32"),
    "device": (lambda: Net().to("meta"), "a.weight is on device meta, expected the cpu"),
    "lazy": (_lazy, "fc.weight, fc.bias have no size yet"),
    "random": (lambda: Net(lambda y: y + torch.rand(5)), "one image gave two results"),
    "state": (Counting, "evaluation changes buffer seen"),
    "branch": (Branching, "model Branching cannot be traced"),
    "failing": (lambda: Net(lambda y: y @ y), "input 3x16x16 does not fit the model"),
    "empty": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 0)), "has no values"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_one_fault_is_named(name: str) -> None:
    make, words = REFUSED[name]
    torch.manual_seed(0)
    net = make()
    before = {key: value.clone() for key, value in net.state_dict().items() if name != "lazy"}
    found = why_not(net, QuantSpec(), SHAPE, CLASSES)
    assert any(words in reason for reason in found), found
    assert not any("\n" in reason for reason in found)
    if name not in ("lazy", "device"):
        after = net.state_dict()
        assert all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before)
    assert net.training


def test_every_reason_is_given_at_once() -> None:
    found = why_not(Floating(), QuantSpec(), SHAPE, CLASSES)
    expected = (
        "AdaptiveAvgPool2d to 3: does not divide its 16x16 input",
        "layer c: padding mode 'reflect'; use zeros", "layer c is called more than once",
        "layer n: BatchNorm without running statistics",
        "GELU has no integer form (act, b.2); use SiLU or Hardswish instead",
        "GroupNorm has no integer form (b.1); use BatchNorm2d instead",
        "softplus has no integer form", "mul with a constant has no integer form",
    )  # fmt: skip
    assert len(found) == len(expected)
    for words in expected:
        assert any(words in reason for reason in found), (words, found)
    assert "--set allow_float=true" in found[-1]
    allowed = why_not(Floating(), QuantSpec(), SHAPE, CLASSES, allow_float=True)
    assert len(allowed) == 4


def test_a_norm_without_a_layer_before_it_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.BatchNorm1d(8), nn.Linear(8, 5), nn.BatchNorm1d(5))  # fmt: skip
    (found,) = why_not(net, QuantSpec(), SHAPE, CLASSES)
    assert (
        "BatchNorm1d that no linear layer before it takes in has no integer form (3)" in found
    )


class OfWeights(nn.Module):
    """A layer whose result `use` computes of a map and of weights."""

    def __init__(self, use: Callable[["OfWeights", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.use = nn.Conv2d(3, 8, 3, padding=1), use
        self.w, self.g = (
            nn.Parameter(torch.rand(8, 8, 1, 1)),
            nn.Parameter(torch.rand(8, 1, 1)),
        )
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.use(self, torch.relu(self.a(x))).mean((2, 3)))
        return y


class Standardised(nn.Conv2d):
    """Weight standardisation, computed in each forward()."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Map(nn.Module):
    """A linear layer on the positions of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.m(torch.relu(self.a(x)).flatten(2).transpose(1, 2))
        y: Tensor = self.fc(x.transpose(1, 2).unflatten(2, (14, 14)).mean((2, 3)))
        return y


ALWAYS_REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weights of a layer": (
        lambda: nn.Sequential(Standardised(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                              nn.Linear(8, CLASSES)),
        "conv2d in 0: forward() computes its weights (mean, sub) from 0.weight; let a "
        "parametrization (torch.nn.utils.parametrize) compute what is stored",
    ),
    "weights of a function": (
        lambda: OfWeights(lambda net, y: functional.conv2d(y, net.w * net.g[..., None])),
        "conv2d: forward() computes its weights (mul) from w, g; let a parametrization",
    ),
    "normalised weights": (
        lambda: OfWeights(lambda net, y: functional.conv2d(y, functional.normalize(net.w))),
        "conv2d: forward() computes its weights (normalize) from w; let a",
    ),
    "a factor": (
        lambda: OfWeights(lambda net, y: y * (net.g * 2)),
        "forward() computes its constant (mul) from g; let a",
    ),
    "a map": (Map, "layer m: Linear of a tensor (N, 196, 8); (N, features) is supported: "),
    "nothing of the image": (
        lambda: OfWeights(lambda net, y: torch.zeros(y.shape[0], 8, 2, 2)),
        "its output does not depend on the image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALWAYS_REFUSED)
def test_what_no_file_can_hold_is_refused_even_as_islands(name: str) -> None:
    make, words = ALWAYS_REFUSED[name]
    for allow_float in (False, True):
        (found,) = why_not(make(), QuantSpec(), SHAPE, CLASSES, allow_float)
        assert words in found and "allow_float" not in found


def test_the_remedy_for_computed_weights_is_admitted() -> None:
    class Standardise(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight - weight.mean((1, 2, 3), keepdim=True)

    conv = nn.Conv2d(3, 8, 3)
    parametrize.register_parametrization(conv, "weight", Standardise())
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    assert not why_not(net, QuantSpec(), SHAPE, CLASSES)


def test_weights_that_are_only_moved_stay_islands() -> None:
    def use(net: OfWeights, y: Tensor) -> Tensor:
        return functional.conv2d(y, net.w.transpose(0, 1))

    assert not why_not(OfWeights(use), QuantSpec(), SHAPE, CLASSES, allow_float=True)
    (found,) = why_not(OfWeights(use), QuantSpec(), SHAPE, CLASSES)
    assert "conv2d with computed weights has no integer form" in found


def test_names_of_torch_fx_are_refused() -> None:
    net = nn.Sequential()
    net.add_module("graph", nn.Conv2d(3, 5, 16))
    net.add_module("flat", nn.Flatten())
    (found,) = why_not(net, QuantSpec(), SHAPE, CLASSES)
    assert "layer graph: torch.fx calls something of its own so" in found


@pytest.mark.parametrize("name", ["c*", "c[0]", "a?", 'a"', "a\\", "a\nb"])
def test_names_that_cannot_be_written_or_asked_for_are_refused(name: str) -> None:
    net = Net()
    net.add_module(name, nn.Conv2d(8, 8, 1))
    (found,) = why_not(net, QuantSpec(), SHAPE, CLASSES)
    assert "layer " in found and "give it another" in found and "\n" not in found


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v3_small", "preact_resnet20"])
def test_good_networks_are_admitted(name: str) -> None:
    model = model_factory(name)(in_channels=3, classes=10)
    assert why_not(model, QuantSpec(), (3, 32, 32), 10) == []


def test_a_large_network_takes_seconds() -> None:
    model = model_factory("resnet50")(in_channels=3, classes=10)
    model.add_module("fc", nn.Sequential(nn.GELU(), model.get_submodule("fc")))
    start = time.monotonic()
    (found,) = why_not(model, QuantSpec(), (3, 224, 224), 10)
    assert "GELU has no integer form (fc.0)" in found
    assert time.monotonic() - start < 15


# The comparison of a captured network with the user's module.


def test_a_change_is_found_at_its_layer() -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), sample_images(SHAPE)
    captured = capture(net, SHAPE)
    assert compare(net, captured, x) is None
    norm = nn.BatchNorm2d(8, eps=0.01)  # another eps alone
    norm.load_state_dict(net.n.state_dict())
    captured.set_submodule("n", norm)
    found = compare(net, captured, x)
    assert found is not None and found.layer == "n" and 1e-3 < found.error < 1e-2
    prepared = prepare(net, QuantSpec(), SHAPE)
    assert compare(net, prepared, x) is None
    norm.running_mean = net.n.running_mean
    prepared.get_submodule("a").norm = norm  # type: ignore[assignment]
    found = compare(net, prepared, x)
    assert found is not None and found.layer == "n"
    assert str(Difference("", 0.5)).startswith("the output differs from the network's own by")


def test_hooks_that_change_values_are_refused_by_name() -> None:
    net = Net()
    net.a.register_forward_hook(lambda _module, _args, y: y * 2)
    (found,) = why_not(net, QuantSpec(), SHAPE, CLASSES)
    assert "layer n differs from the network's own by" in found
    assert "forward hooks (a) are not part of its graph" in found
    watched = Net()
    watched.a.register_forward_hook(lambda *_: None)
    assert why_not(watched, QuantSpec(), SHAPE, CLASSES) == []


# The command line.


def data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], int]:
    x = np.random.default_rng(0).integers(0, 256, (16, 3, 16, 16), np.uint8)
    return (x, np.arange(16) % 5), (x, np.arange(16) % 5), 5


def grey() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], int]:
    (x, labels), _, classes = data()
    return (x[:, :1], labels), (x[:, :1], labels), classes


def floating() -> nn.Module:
    return Floating()


def gelu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def lazy() -> nn.Module:
    return _lazy()


def volume() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 5, (3, 16, 16)), nn.Flatten())


def wrapped() -> nn.Module:
    return nn.DataParallel(plain())


def tuples() -> nn.Module:
    return Net(lambda y: (y, y))


def plain(classes: int = 5) -> nn.Module:
    net = gelu()
    assert isinstance(net, nn.Sequential)
    net[1] = nn.ReLU()
    return net


def pair() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 2))  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def train(recipe: str, model: str, *more: object) -> str:
    """Return the one line of a refusal, after which nothing is there."""
    before = sorted(os.listdir())
    done = run_qtool(
        "train", recipe, "--model", f"{HERE}:{model}", "--data", f"{HERE}:data",
        "--out", "run", *more,
    )  # fmt: skip
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert sorted(os.listdir()) == before
    return done.err


@pytest.mark.parametrize("recipe", ["metamix", "qat"])
def test_training_is_refused_with_every_reason(recipe: str, folder: Path) -> None:
    line = train(recipe, "floating")
    assert "model test_admit:floating cannot be quantized, for 8 reasons: (1) " in line
    assert "(8) " in line and "GELU" in line


def test_post_training_quantization_is_refused_likewise(folder: Path) -> None:
    torch.save(gelu().state_dict(), "w.pt")
    line = train("ptq", "gelu", "--set", "weights=w.pt")
    assert "model test_admit:gelu: GELU has no integer form (1)" in line
    assert "expected" not in line


def test_a_directory_that_was_there_stays_as_it_was(folder: Path) -> None:
    Path("run").mkdir()
    Path("run/recipe.json").write_text("mine")
    assert "GELU" in train("qat", "gelu", "--force")
    assert os.listdir("run") == ["recipe.json"]
    assert Path("run/recipe.json").read_text() == "mine"


def test_lazy_networks_are_refused_before_they_are_built_on(folder: Path) -> None:
    assert "fc.weight, fc.bias: no size yet" in train("qat", "lazy")


def test_other_modules_are_refused(folder: Path) -> None:
    assert "Conv3d has no integer form (1)" in train("qat", "volume")
    assert "the factory returned a DataParallel, a wrapper" in train("qat", "wrapped")


def test_a_teacher_must_give_logits_too(folder: Path) -> None:
    torch.save(tuples().state_dict(), "teacher.pt")
    line = train(
        "qat", "plain", "--set", "teacher=teacher.pt", "--set", f"teacher_model={HERE}:tuples"
    )
    assert "teacher teacher.pt: forward() returns a tuple of 2" in line


def test_islands_may_be_trained_and_exported(folder: Path) -> None:
    torch.save(gelu().state_dict(), "w.pt")
    done = run_qtool(
        "train", "ptq", "--model", f"{HERE}:gelu", "--data", f"{HERE}:data", "--out", "run",
        "--set", "weights=w.pt", "--set", "allow_float=true",
    )  # fmt: skip
    assert done.code == 0, done.err
    made = run_qtool("export", "run", "--target", "onnx", "-o", "m.onnx")
    assert made.code == 2 and "Gelu" in made.err
    made = run_qtool("export", "run", "--target", "onnx", "-o", "m.onnx", "--allow-float")
    assert made.code == 0, made.err


def test_images_of_other_channels(folder: Path) -> None:
    line = train("qat", "plain", "--data", f"{HERE}:grey")
    assert "input 1x16x16 does not fit the model" in line
    assert "expected input[2, 1, 16, 16] to have 3 channels, but got 1" in line


@pytest.mark.parametrize(
    ("mode", "size", "classes", "words"),
    [
        ("RGB", 16, 3, "it has 5 outputs, the data set 3 classes"),
        ("RGB", 2, 5, "input 3x2x2 does not fit the model"),
    ],
)
def test_folders_that_do_not_fit_the_network(
    mode: str, size: int, classes: int, words: str, folder: Path
) -> None:
    for part in ("train", "val"):
        for label in range(classes):
            place = folder / "images" / part / str(label)
            place.mkdir(parents=True)
            Image.new(mode, (size, size), 7).save(place / "a.png")
    line = train("qat", "plain", "--data", folder / "images", "--set", f"image_size={size}")
    assert words in line


def test_a_refused_training_leaves_nothing(folder: Path) -> None:
    bad = write_folders(folder / "images")
    whole = bad.read_bytes()
    bad.write_bytes(whole[:200])
    torch.save(pair().state_dict(), "w.pt")
    command = (
        "train", "ptq", "--model", f"{HERE}:pair", "--data", folder / "images", "--out",
        "a/run", "--set", "image_size=16", "--set", "weights=w.pt",
    )  # fmt: skip
    refused = run_qtool(*command)
    assert refused.code == 2 and str(bad) in refused.err and not (folder / "a").exists()
    Path("a/run").mkdir(parents=True)
    Path("a/run/notes.txt").write_text("mine")
    assert run_qtool(*command).code == 2 and os.listdir("a/run") == ["notes.txt"]
    bad.write_bytes(whole)
    done = run_qtool(*command)
    assert done.code == 0, done.err
