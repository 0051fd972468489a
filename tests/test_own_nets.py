"""The user's own networks, through the command line: right numbers, or one line and nothing.

Right is what the user's module itself gives for the same images, in floating point.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from conftest import run_qtool
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from qtool.checking.file_layers import names_in_run

Wrap = Callable[[nn.Conv2d], nn.Module]
HERE = "test_own_nets"


class Net(nn.Module):
    """Two convolutions and a sum; `name` is the second one's."""

    def __init__(self, name: str = "a", wrap: Wrap = lambda conv: conv) -> None:
        super().__init__()
        self.conv_name = name
        self.stem, conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.add_module(name, wrap(conv))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.get_submodule(self.conv_name)(x))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class Tied(Net):
    """Two layers have one bias, two have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Conv2d(8, 8, 3, padding=1)
        second = self.get_submodule("a")
        assert isinstance(second, nn.Conv2d)
        second.bias, self.twin.weight = self.stem.bias, second.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.get_submodule("a")(x)) + torch.relu(self.twin(x))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class NormAct(nn.BatchNorm2d):
    """timm's way: a BatchNorm2d with modules inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        torch._assert(input.ndim == 4, "expected 4D input")
        x = functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training, 0.1, self.eps,
        )  # fmt: skip
        y: Tensor = self.act(self.drop(x))
        return y


class ConvNormAct(nn.Conv2d):
    """A convolution with its norm and its activation inside, called as qtool calls its own."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b, 3, padding=1)
        self.norm, self.layer = nn.BatchNorm2d(b), nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.layer(self.norm(self._conv_forward(input, self.weight, self.bias)))
        return y


def _head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)]


def _orthogonal(conv: nn.Conv2d) -> nn.Module:
    return parametrizations.orthogonal(conv)


class Doubled(nn.Module):
    """A parametrization of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def _doubled(conv: nn.Conv2d) -> nn.Module:
    parametrize.register_parametrization(conv, "bias", Doubled())
    return parametrize.register_parametrization(conv, "weight", Doubled())


def _pruned(conv: nn.Conv2d) -> nn.Module:
    return prune.l1_unstructured(prune.random_unstructured(conv, "weight", 0.3), "weight", 0.2)


class Buffered(Net):
    """Buffers and parameters under names that the export uses."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.logits = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.logits(torch.relu(self.input(self.stem(x)))))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class SharedStatistics(Net):
    """Two norms with one set of running statistics, behind different layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        first, second = self.norms
        second.running_mean, second.running_var = first.running_mean, first.running_var
        second.num_batches_tracked = first.num_batches_tracked

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.stem(x)))
        x = torch.relu(self.norms[1](self.get_submodule("a")(x)))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class UnreadPart(Net):
    """Of three parts of a tensor the second is for nobody."""

    def forward(self, x: Tensor) -> Tensor:
        first, _, last = torch.relu(self.stem(x)).split([2, 3, 3], 1)
        x = self.get_submodule("a")(torch.cat([last, first, last], 1))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class Auxiliary(Net):
    """A head and a layer for nobody, and one whose result is added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.b = nn.Linear(8, 5), nn.Conv2d(3, 8, 1)
        self.lost = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y.add_(self.b(x))
        self.head(torch.relu(self.lost(y)).mean((2, 3)))
        y = torch.relu(self.get_submodule("a")(torch.relu(y)))
        result: Tensor = self.fc(y.mean((2, 3)))
        return result


class Hooked(Net):
    """A hook that looks and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.stem.register_forward_hook(lambda *_: None)


def _convolutions(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules, *_head(8))


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "glue_name": lambda: Net("glue_add"),
    "deferred_name": lambda: Net("deferred_relu"),
    "image_name": lambda: Net("glue_x"),
    "x_name": lambda: Net("x"),
    "input_name": lambda: Net("input"),
    "output_name": lambda: Net("output"),
    "codes_name": lambda: Net("codes"),
    "network_name": lambda: Net("network"),
    "quant_name": lambda: Net("input_quant"),
    "slash_name": lambda: Net("a/b c"),
    "unicode_name": lambda: Net("Schicht_ä"),
    "norm_name": lambda: Net("norm"),
    "add_name": lambda: Net("add"),
    "tied": Tied,
    "hook_norm": lambda: Net(wrap=weight_norm),
    "hook_spectral": lambda: Net(wrap=spectral_norm),
    "weight_norm": lambda: Net(wrap=parametrizations.weight_norm),
    "spectral_norm": lambda: Net(wrap=parametrizations.spectral_norm),
    "orthogonal": lambda: Net(wrap=_orthogonal),
    "doubled": lambda: Net(wrap=_doubled),
    "pruned": lambda: Net(wrap=_pruned),
    "norm_act": lambda: _convolutions(nn.Conv2d(3, 8, 3), NormAct(8)),
    "norm_act_alone": lambda: _convolutions(
        nn.Conv2d(3, 8, 3), nn.ReLU(), NormAct(8), nn.Conv2d(8, 8, 3)
    ),
    "conv_norm_act": lambda: _convolutions(ConvNormAct(3, 8), ConvNormAct(8, 8)),
    "norm_without_bias": lambda: _convolutions(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, bias=False), nn.ReLU()
    ),
    "linear_norm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 5),
        nn.BatchNorm1d(5),
    ),
    "shared_statistics": SharedStatistics,
    "unread_part": UnreadPart,
    "unread_layers": Auxiliary,
    "buffered": Buffered,
    "hooked": Hooked,
    "channels_last": lambda: Net().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
}


def make(name: str) -> nn.Module:
    """Return network `name` in evaluation, its norms with statistics."""
    torch.manual_seed(0)
    network = NETS[name]()
    for norm in (
        m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)
    ):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight, 1, 0.2)
        if norm.bias is not None:
            nn.init.normal_(norm.bias, std=0.2)
    return network.eval()


def data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], int]:
    x = np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16), np.uint8)
    x[::2] //= 3
    return (x, np.arange(64) % 5), (x, np.arange(64) % 5), 5


def __getattr__(name: str) -> Callable[[], nn.Module]:
    if name.startswith("net_"):
        return lambda: make(name.removeprefix("net_"))
    raise AttributeError(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    yield tmp_path


# Eight bits alone: each further candidate takes as long again.
_FEWER = (
    "weight_bits=8", "activation_bits=8", "bits=w8a8", "presets=", "compare_images=8",
)  # fmt: skip


def quantized(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the exported file's logits at W8A8 and the module's own."""
    network = make(name)
    torch.save(network.state_dict(), "weights.pt")
    trained = run_qtool(
        "train", "ptq_resnet20_cifar", "--model", f"{HERE}:net_{name}", "--data",
        f"{HERE}:data", "--set", "weights=weights.pt", "--set", "mean=", "--set", "std=",
        *(part for setting in _FEWER for part in ("--set", setting)), "--out", "run",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    made = run_qtool("export", "run", "--target", "onnx", "-o", "m.onnx", "--bits", "w8a8")
    assert made.code == 0, made.err
    x = data()[0][0].astype(np.float32) / 255
    got = ort.InferenceSession("m.onnx").run(None, {"input": x})[0]
    with torch.no_grad():
        return got, network(torch.tensor(x)).numpy()


def _often(name: str) -> object:
    """Names that collide are of one kind: a few of them are tried every time."""
    is_one_of_many = name.endswith("_name") and name not in ("glue_name", "input_name")
    return pytest.param(name, marks=pytest.mark.nightly) if is_one_of_many else name


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", [_often(name) for name in NETS])
def test_the_file_computes_what_the_network_does(name: str, folder: Path) -> None:
    got, wanted = quantized(name)
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error < 0.02


@pytest.mark.parametrize("what", ["--reference", "--original"])
def test_numbered_names_lead_back_to_the_run(what: str, folder: Path) -> None:
    quantized("buffered")
    checked = run_qtool("check", "m.onnx", what, "run", "--data", f"{HERE}:data",
                        "--runtime", "reference")  # fmt: skip
    assert checked.code == 0, checked.err


@pytest.mark.parametrize(
    ("names", "own", "found"),
    [
        ("a b", "b a", "a b"),
        ("stem logits_2 fc", "stem logits fc", "stem logits fc"),
        ("logits_2 logits_2_2 fc", "logits logits_2 fc", "logits logits_2 fc"),
        ("conv conv_2 input_2", "conv conv_2 input", "conv conv_2 input"),
        ("stem other fc", "stem fc", "stem other fc"),
        ("stem other_2 fc", "stem fc", "stem other_2 fc"),
    ],
)
def test_names_of_a_file(names: str, own: str, found: str) -> None:
    assert names_in_run(names.split(), own.split()) == found.split()
