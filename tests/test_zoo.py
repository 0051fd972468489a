"""The model zoo: names, sizes, published weights, and networks from elsewhere."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_qtool
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from qtool.core.errors import UserError
from qtool.models import MODELS, model_entry, model_factory
from qtool.models.macs import count_macs
from qtool.models.weights import fit_state, load_weights

# name: (state dict entries, parameters, layers with MACs, MACs). Parameters and MACs of the
# torchvision networks are those that torchvision documents; ResNet-n has n layers.
SIZES = {
    "mobilenet_v1": (164, 4_231_976, 28, 568_740_352),
    "mobilenet_v2_cifar": (314, 2_236_682, 53, 87_976_448),
    "mobilenet_v3_large": (312, 5_483_032, 64, 216_589_760),
    "mobilenet_v3_small": (244, 2_542_856, 54, 56_510_400),
    "resnet18_cifar": (122, 11_173_962, 21, 555_422_720),
    "resnet20": (116, 269_722, 20, 40_551_040),
    "resnet32": (188, 464_154, 32, 68_862_592),
    "resnet44": (260, 658_586, 44, 97_174_144),
    "resnet56": (332, 853_018, 56, 125_485_696),
    "preact_resnet20": (128, 6_758_810, 22, 1_011_469_440),
    "preact_resnet20_narrow": (128, 272_474, 22, 40_813_184),
    "svhn_cnn8": (35, 2_081_354, 8, 41_735_424),
    "cnn4_omniglot": (28, 111_936, 4, 9_815_040),
    "cnn4_miniimagenet": (28, 113_088, 4, 97_164_288),
    "cnn5_omniglot": (30, 113_236, 5, 9_816_320),
    "cnn5_miniimagenet": (30, 32_901, 5, 27_343_264),
}
TORCHVISION_NAMES = {
    "mobilenet_v3_large": {
        "features.0.0.weight": (16, 3, 3, 3), "features.0.1.running_var": (16,),
        "features.1.block.0.0.weight": (16, 1, 3, 3), "features.1.block.1.1.bias": (16,),
        "features.2.block.0.0.weight": (64, 16, 1, 1),
        "features.4.block.2.fc1.weight": (24, 72, 1, 1), "features.4.block.2.fc2.bias": (72,),
        "features.13.block.1.0.weight": (672, 1, 5, 5),
        "features.15.block.3.0.weight": (160, 960, 1, 1),
        "features.16.0.weight": (960, 160, 1, 1),
        "classifier.0.weight": (1280, 960), "classifier.3.bias": (1000,),
    },
    "mobilenet_v3_small": {
        "features.1.block.1.fc1.weight": (8, 16, 1, 1),
        "features.1.block.2.0.weight": (16, 16, 1, 1),
        "features.4.block.1.0.weight": (96, 1, 5, 5), "features.12.0.weight": (576, 96, 1, 1),
        "classifier.0.weight": (1024, 576), "classifier.3.weight": (1000, 1024),
    },
}  # fmt: skip


def on_meta(name: str) -> nn.Module:
    """Build `name` without its weights."""
    with torch.device("meta"):
        return model_factory(name)()


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    model = on_meta(name)
    macs = count_macs(model, MODELS[name].input_shape)
    counted = sum(p.numel() for p in model.parameters()), len(macs), sum(n for _, n in macs)
    assert (len(model.state_dict()), *counted) == SIZES[name]


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_torchvision_names(name: str) -> None:
    shapes = {key: tuple(value.shape) for key, value in on_meta(name).state_dict().items()}
    wanted = TORCHVISION_NAMES[name]
    assert {key: shapes.get(key) for key in wanted} == wanted


@pytest.mark.parametrize("name", MODELS)
def test_the_listing_tells_the_macs(name: str) -> None:
    match = re.search(r"([\d.]+) ([MG]) MACs$", MODELS[name].summary)
    assert match is not None
    macs = sum(n for _, n in count_macs(on_meta(name), MODELS[name].input_shape))
    decimals = len(match[1].partition(".")[2])
    assert f"{macs / {'M': 1e6, 'G': 1e9}[match[2]]:.{decimals}f}" == match[1]


@pytest.mark.parametrize("name", MODELS)
def test_networks_trace_down_to_their_layers(name: str) -> None:
    entry = MODELS[name]
    model = on_meta(name).eval()
    traced = fx.symbolic_trace(model)
    shape = traced(torch.empty(2, *entry.input_shape, device="meta")).shape
    assert shape[0] == 2 and len(shape) == 2
    called = {n.target for n in traced.graph.nodes if n.op == "call_module"}
    layers = {k for k, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert layers <= called


def test_channels_and_classes_are_the_users() -> None:
    for name, entry in MODELS.items():
        with torch.device("meta"):
            model = model_factory(name)(in_channels=2, classes=7)
            out = model.eval()(torch.empty(1, 2, *entry.input_shape[1:]))
        embedding = {"cnn4_omniglot": 64, "cnn4_miniimagenet": 1600}
        assert out.shape == (1, embedding.get(name, 7)), name


def test_option_a_shortcut_slices_and_pads() -> None:
    model = model_factory("resnet20")()
    shortcut = model.get_submodule("layer2.0.downsample")
    x = torch.arange(2 * 16 * 4 * 4).reshape(2, 16, 4, 4)
    y = shortcut(x)
    assert y.shape == (2, 32, 2, 2) and torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_mobilenet_v3_follows_torchvision_where_names_cannot_tell() -> None:
    model = on_meta("mobilenet_v3_small")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.001, 0.01)}
    kinds = [type(m) for m in model.modules()]
    counts = {kind: kinds.count(kind) for kind in (nn.Hardswish, nn.Hardsigmoid, nn.ReLU)}
    assert counts == {nn.Hardswish: 19, nn.Hardsigmoid: 9, nn.ReLU: 5 + 9}


def test_pre_activation_puts_norms_before_convolutions() -> None:
    traced = fx.symbolic_trace(on_meta("preact_resnet20"))
    order = [n.target for n in traced.graph.nodes if str(n.target).startswith("layer2.0")]
    assert order == [
        "layer2.0.bn1", "layer2.0.relu", "layer2.0.downsample.0", "layer2.0.downsample.1",
        "layer2.0.conv1", "layer2.0.bn2", "layer2.0.relu", "layer2.0.conv2",
    ]  # fmt: skip


def test_maml_learns_no_gamma() -> None:
    learned = {
        name
        for name, parameter in model_factory("cnn5_omniglot")().named_parameters()
        if parameter.requires_grad
    }
    assert "features.0.1.bias" in learned and "features.0.1.weight" not in learned


# --- weights made elsewhere ---------------------------------------------------------------


# images of the first 500 that the published weights get right; all 10,000: 91.73, 93.39 %
@pytest.mark.parametrize(
    ("name", "file", "right"),
    [("resnet20", "resnet20-12fca82f.th", 455), ("resnet56", "resnet56-4bfd9763.th", 470)],
)
def test_published_cifar_weights(name: str, file: str, right: int) -> None:
    if "QTOOL_DATA" not in os.environ:
        pytest.skip("QTOOL_DATA is not set: published weights and CIFAR-10 are not here")
    folder = Path(os.environ["QTOOL_DATA"])
    model = model_factory(name)()
    fit_state(model, load_weights(folder / "weights" / file), file)
    x, labels = cifar10_test(folder / "cifar10_webp", 500)
    with torch.no_grad():
        assert int((model.eval()(x).argmax(1) == labels).sum()) == right


def cifar10_test(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Return the first test images, normalised as the weights' author did, and labels."""
    image = pytest.importorskip("PIL.Image", reason="Pillow reads the packed CIFAR-10")
    tiles = np.asarray(image.open(folder / "test_batch.webp").convert("RGB"))
    tiles = tiles.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    pixels = torch.from_numpy(tiles[:count].astype(np.float32)) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    labels = json.loads((folder / "labels.json").read_text())["test_batch"]["labels"]
    return (pixels - mean[:, None, None]) / std[:, None, None], torch.tensor(labels[:count])


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


@pytest.mark.parametrize("suffix", ["pt", "pth", "th", "safetensors"])
def test_weights_go_round(tmp_path: Path, suffix: str) -> None:
    path, source, target = tmp_path / f"w.{suffix}", tiny(), tiny()
    state = source.state_dict()
    if suffix == "safetensors":
        save_file(state, path)
    else:
        wrapped = {f"module.{k}": v for k, v in state.items() if "num_batches" not in k}
        torch.save({"epoch": 3, "state_dict" if suffix == "pt" else "model": wrapped}, path)
    fit_state(target, load_weights(path), "w")
    assert all(torch.equal(v, state[k]) for k, v in target.state_dict().items())


def test_weights_that_do_not_fit_change_nothing() -> None:
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: torch.full_like(v, 5) for k, v in before.items() if k != "1.bias"}
    state |= {"0.weight": torch.ones(2, 3, 3, 3), "fc.weight": torch.ones(1)}
    with pytest.raises(UserError) as refused:
        fit_state(model, state, "weights w.pt")
    assert str(refused.value) == (
        "weights w.pt does not fit Sequential: 1 missing (1.bias); 1 unexpected (fc.weight); "
        "1 of another shape (0.weight (2, 3, 3, 3) for (2, 1, 3, 3))"
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(
        UserError, match=r"6 missing \(0.weight, 0.bias, 1.weight and 3 more\)"
    ):
        fit_state(model, {}, "w")


class Bomb:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_weights_never_run_code(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb(tmp_path / "exploded")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="refused: it holds Python objects besides tensors"):
        load_weights(tmp_path / "w.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 7, 300, -100])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_weights(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(tiny().state_dict(), path)
    else:
        save_file(tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"w\.\w+ is truncated or damaged") as refused:
        load_weights(path)
    assert "\n" not in str(refused.value)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    def refusal(content: object, name: str = "w.pt") -> str:
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError) as refused:
            load_weights(tmp_path / name)
        return str(refused.value)

    assert refusal({}).endswith("w.pt: no tensors in it")
    assert refusal([1]).endswith("got a list, expected a dict of tensors")
    assert refusal({"a": 1}).endswith("'a' is a int, expected a tensor")
    assert ".safetensors, .pt, .pth, .th" in refusal({}, "w.bin")
    with pytest.raises(UserError, match=r"absent\.pt: no such file"):
        load_weights(tmp_path / "absent.pt")


# --- networks from elsewhere --------------------------------------------------------------

USER_MODULE = """
from torch import nn
import {imported}

class Net(nn.Module):
    input_shape = (1, 28, 28)
    def __init__(self, classes=10, **options):
        super().__init__()
        assert not options
        self.fc = nn.Linear(784, classes)
    def forward(self, x):
        return self.fc(x.flatten(1))

def plain():
    return nn.Conv2d(3, 8, 3)

def wide(in_chans, num_classes, width=4):
    return nn.Sequential(nn.Conv2d(in_chans, width, 3), nn.Conv2d(width, num_classes, 1))

def number(): return 3
def broken(): raise RuntimeError("no GPU\\nhere")
def needy(depth): return nn.Identity()
ready, none = nn.Identity(), 3
def odd(): return nn.Identity()
odd.input_shape = (3, 0)
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package in the current directory, which sys.path does not have."""
    folder = tmp_path / "zoo_user_package"
    folder.mkdir()
    (folder / "nets.py").write_text(USER_MODULE.format(imported="math"))
    (folder / "lacking.py").write_text(USER_MODULE.format(imported="absent_library.sub"))
    (folder / "crashing.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    forget("zoo_user_package")
    return "zoo_user_package.nets"


def forget(package: str) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        del sys.modules[name]


def test_a_users_network_is_counted(user_module: str) -> None:
    path = list(sys.path)
    done = run_qtool("bops", f"{user_module}:plain", "--input", "3x32x32")
    assert done.code == 0 and "from 194,400 MACs" in done.out, done.err
    done = run_qtool("bops", f"{user_module}:Net", "--bits", "w4a4", "--json")
    assert json.loads(done.out)["bops"] == 7840 * 16, done.err
    assert sys.path == path


def test_factories_get_what_their_signature_names(user_module: str) -> None:
    build = model_factory(f"{user_module}:Net")
    assert build(in_channels=1, classes=3).get_parameter("fc.weight").shape == (3, 784)
    wide = model_factory(f"{user_module}:wide")(in_channels=2, classes=6)
    assert [tuple(p.shape) for p in wide.parameters()][::2] == [(4, 2, 3, 3), (6, 4, 1, 1)]
    assert model_entry(f"{user_module}:Net").input_shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zoo_user_package.nets:plane", "module zoo_user_package.nets has no 'plane'"),
        ("zoo_user_package.nets:plane", "did you mean plain"),
        ("zoo_user_package.nests:plain", "no module zoo_user_package.nests in the current"),
        ("zoo_user_pakage.nets:plain", "no module zoo_user_pakage in the current directory"),
        ("zoo_user_package.lacking:Net", "needs absent_library, which is not installed"),
        ("zoo_user_package.crashing:Net", "failed: ZeroDivisionError: division by zero"),
        ("zoo_user_package.nets:number", "the factory returned int, expected an nn.Module"),
        ("zoo_user_package.nets:broken", "the factory failed: RuntimeError: no GPU"),
        ("zoo_user_package.nets:needy", "TypeError: needy() missing 1 required"),
        ("zoo_user_package.nets:ready", "ready is a Identity, expected a function or class"),
        ("zoo_user_package.nets:none", "none is a int, expected a function or class"),
        ("zoo_user_package.nets:odd", "input_shape is (3, 0), expected (channels, height,"),
        ("zoo_user_package.nets:", "expected package.module:factory"),
        ("../nets.py:plain", "expected package.module:factory"),
    ],
)
def test_refusals_of_users_networks(user_module: str, name: str, words: str) -> None:
    done = run_qtool("bops", name, "--input", "3x8x8")
    assert done.code == 2 and done.err.startswith("qtool: error: model "), done.err
    assert words in done.err and len(done.err.splitlines()) == 1, done.err


def test_an_unknown_image_size_is_asked_for(user_module: str) -> None:
    done = run_qtool("bops", f"{user_module}:plain")
    assert done.code == 2 and "image size unknown; give --input CxHxW" in done.err
    done = run_qtool("bops", f"{user_module}:plain", "--input", "1x32x32")
    assert done.code == 2 and "input 1x32x32 does not fit the model" in done.err


FAKE_TIMM = """
from torch import nn
class Config: input_size = (3, 8, 8)
def is_model(name): return name == "tiny_net"
def list_models(): return ["tiny_net"]
def get_pretrained_cfg(name): return Config
def create_model(name, pretrained, in_chans, num_classes):
    assert not pretrained
    return nn.Conv2d(in_chans, num_classes or 1000, 1)
"""
FAKE_TORCHVISION = """
from torch import nn
def list_models(module): return ["tiny_net"]
def get_model(name, weights, num_classes):
    assert weights is None
    return nn.Conv2d(3, num_classes, 1)
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with timm's and torchvision's functions; neither is a dependency."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "timm.py").write_text(FAKE_TIMM)
    (tmp_path / "torchvision" / "models.py").write_text(FAKE_TORCHVISION)
    (tmp_path / "torchvision" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("timm", "torchvision"):
        for name in [n for n in sys.modules if n.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
    yield
    forget("timm")
    forget("torchvision")


def test_timm_and_torchvision_by_name(libraries: None) -> None:
    assert model_entry("timm:tiny_net").input_shape == (3, 8, 8)
    net = model_factory("timm:tiny_net")(in_channels=1, classes=4)
    assert net.get_parameter("weight").shape == (4, 1, 1, 1)
    assert model_entry("torchvision:tiny_net").input_shape == (3, 224, 224)
    net = model_factory("torchvision:tiny_net")(in_channels=3, classes=4)
    assert net.get_parameter("weight").shape == (4, 3, 1, 1)
    with pytest.raises(UserError, match="networks take 3 channels, got 1"):
        model_factory("torchvision:tiny_net")(in_channels=1)
    for library in ("timm", "torchvision"):
        with pytest.raises(UserError, match=f"{library} has no 'tiny_nut': did you mean tiny"):
            model_entry(f"{library}:tiny_nut")
