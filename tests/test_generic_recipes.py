"""A user's own network and folder of images: ptq, qat, metamix, from weights to parity."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import Result, run_qtool
from image_sets import write_folders
from torch import nn

from qtool.recipes import GENERIC, load_recipe
from qtool.recipes.generic import complete
from qtool.runs.run import Run
from qtool.settings.base import Config

OWN = "test_generic_recipes:own_net"
TINY = ("image_size=16", "batch_size=4", "calibration_images=8")
TRAINED = (*TINY, "norm_batches=1")
SMALL = {
    "coquant": (*TRAINED, "epochs=1", "activation_bits=8,4"),
    "ptq": (*TINY, "correction_images=4", "compare_images=4"),
    "qat": (*TRAINED, "epochs=1"),
    "mebqat": (*TRAINED, "epochs=1", "weight_bits=4,2,32", "activation_bits=4,32"),
    "metamix": tuple(s for s in TRAINED if "calibration" not in s),
}
DATA = """
import numpy as np

def images():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (8, 3, 16, 16), np.uint8), np.arange(8) % 2) for _ in "ab"]
"""


def own_net(in_channels: int = 3, classes: int = 2) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/, val/, float weights and a module that makes data."""
    folder = tmp_path_factory.mktemp("own")
    write_folders(folder / "images")
    torch.manual_seed(0)
    torch.save(own_net().state_dict(), folder / "w.pt")
    (folder / "my_data.py").write_text(DATA)
    return folder


def train(recipe: str, out: Path, *args: object, settings: tuple[str, ...] = ()) -> Result:
    words = (word for each in settings for word in ("--set", each))
    return run_qtool("train", recipe, *args, "--out", out, *words)


@pytest.mark.parametrize("recipe", GENERIC)
def test_from_weights_to_parity(recipe: str, source: Path, tmp_path: Path) -> None:
    run, model, report = tmp_path / "run", tmp_path / "m.onnx", tmp_path / "r.json"
    given = ("--model", OWN, "--data", source / "images")
    settings = (*SMALL[recipe], f"weights={source / 'w.pt'}")
    trained = train(recipe, run, *given, settings=settings)
    assert trained.code == 0, trained.err
    assert f"trained {recipe} -> {run}; next: qtool " in trained.out
    config = Run.open(run).config
    named = (config.name, config.model, config.dataset, config.frontend)
    assert named == (recipe, OWN, "imagefolder", recipe)
    made = run_qtool("export", run, "--target", "onnx", "--bits", "w4a4", "-o", model)
    assert made.code == 0, made.err
    checked = run_qtool(
        "check", model, "--data", source / "images", "--reference", run,
        "--runtime", "reference,ort", "--require-parity", "--json", report,
    )  # fmt: skip
    assert checked.code == 0, checked.err
    parity = json.loads(report.read_text())["parity"]["ort"]
    assert parity["mismatched"] == 0 and parity["compared"] > 0


def test_data_from_own_code(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_data", raising=False)
    settings = (*SMALL["ptq"], "weights=w.pt")
    given = ("--model", OWN, "--data", "my_data:images")
    trained = train("ptq", tmp_path / "run", *given, settings=settings)
    assert trained.code == 0, trained.err
    assert Run.open(tmp_path / "run").config.dataset == "my_data:images"


NETWORK = "a network: --model NAME (qtool list models) or --model package.module:factory"
IMAGES = "images: --data DIR with train/CLASS/* and val/CLASS/*, --data package.module:factory"


@pytest.mark.parametrize("recipe", GENERIC)
@pytest.mark.parametrize(("args", "said"), [
    (("--data", "nowhere"), "recipe {recipe} needs " + f"{NETWORK}\n"),
    (("--model", "nowhere:net"), f"needs {IMAGES}, or --set dataset=NAME (qtool list data"),
    (("--set", "model=resnet20"), f"needs {IMAGES}"),
    (("--set", "dataset=cifar10"), f"needs {NETWORK}\n"),
    ((), f"needs {NETWORK}; and {IMAGES}"),
    (("--model", "resnet20", "--data", "nowhere"), "data folder nowhere does not exist"),
    (("--model", "resnet20", "--data", "images"), "no weights.pt: no such file"),
    (("--model", "resnet20", "--data", "images/train"), "images/train has no folder train,"),
    (("--model", "resnt20", "--data", "images"), "unknown model 'resnt20': did you mean"),
])  # fmt: skip
def test_refusals_are_one_line_and_write_nothing(
    recipe: str, args: tuple[str, ...], said: str, source: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(source)
    monkeypatch.setenv("QTOOL_DATA", "nowhere")
    done = train(recipe, tmp_path / "run", *args, settings=("weights=no weights.pt",))
    assert (done.code, done.err.count("\n"), done.out) == (2, 1, ""), done.err
    assert said.format(recipe=recipe) in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["activation_bits", "weight_bits"])
@pytest.mark.parametrize(("recipe", "said"), [
    ("metamix", "setting {name}: no candidates; give some, such as 8,4,3"),
    ("ptq", "bits and presets: w8a8 is not among the candidates"),
])  # fmt: skip
def test_no_candidates_are_refused_before_anything_is_written(
    recipe: str,
    said: str,
    name: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(source)
    args = ("--model", "resnet20", "--data", "images")
    done = train(recipe, tmp_path / "run", *args, settings=(f"{name}=",))
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert said.format(name=name) in done.err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", GENERIC)
def test_a_generic_recipe_assumes_nothing_of_network_and_images(recipe: str) -> None:
    config = load_recipe(recipe)
    assert (config.name, config.frontend) == (recipe, recipe)
    assert (config.model, config.dataset, config.mean, config.std) == ("", "", (), ())
    assert getattr(config, "augment", ()) == ()


def test_a_folder_is_imagefolder_unless_said_otherwise() -> None:
    given = Config("r", "resnet20", "cifar10")
    assert complete(given, Path("folder")) is given
    own = Config("r", "resnet20", "")
    assert complete(own, Path("folder")).dataset == "imagefolder"
