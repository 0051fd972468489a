"""Frontends: both registries, and a run of a new one that a search starts from."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Result, run_qtool
from rich.table import Table
from tiny_training import SHAPE, plain_net, tiny_data
from torch import nn

from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.core.selection import Selection
from qtool.data.batches import to_batch
from qtool.data.images import DataSet
from qtool.frontends.float_network import save_float
from qtool.frontends.meta_state import search_start
from qtool.networks import build_float, build_prepared
from qtool.nn.control import calibrate, select
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import Config, TrainConfig
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.ptq import PtqConfig
from qtool.settings.qat import QatConfig
from qtool.settings.registry import CONFIGS
from qtool.settings.search import SearchSettings, missing_settings, search_settings
from qtool.tensor_file import load_tensors
from qtool.training.frontend import FRONTENDS, Frontend, load_frontend
from qtool.training.ingredients import check_training, settings_of

# BOPs: between what the candidates of `wide_net` reach.
BUDGET = 90_000
FAST = (
    "batch_size=8", "norm_batches=1", "device=cpu", "augment=", "activation_bits=8,4,3",
)  # fmt: skip


@dataclass(frozen=True)
class JointConfig(TrainConfig):
    """A plain recipe: nothing in it is of a search."""

    frontend: str = "joint"


def check(config: Config, data: DataSet) -> None:
    assert isinstance(config, JointConfig)
    check_training(config, data)


def train(run: Run, data: DataSet, progress: Progress, resume: bool) -> Table | None:
    """Calibrate: enough for weights that serve every candidate, if not well."""
    save_float(run, build_float(run), data, progress)
    model = build_prepared(run, float_weights=True)
    calibrate(model, to_batch(data.train, slice(0, 16))[0])
    select(model, Selection())
    for stage in (Stage.META, Stage.MODEL):
        run.save_weights(stage, model.state_dict())
    return Table("joint")


FRONTEND = Frontend(JointConfig, check, train, search_start, "qtool search {run}")


def search(run: Path, *args: object) -> Result:
    return run_qtool("search", run, "--data", "tiny_training:tiny_data", *args)


def wide_net(in_channels: int = 1, classes: int = 4) -> nn.Module:
    """Return a network with three inner layers to choose bits for."""
    first, norm, relu, *rest = plain_net(in_channels, classes)
    inner = [nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(first, norm, relu, *inner, *rest)


@pytest.fixture
def joint_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the new frontend, registered by a line in each registry."""
    monkeypatch.setitem(FRONTENDS, "joint", __name__)
    monkeypatch.setitem(CONFIGS, "joint", JointConfig)
    config = JointConfig(
        "joint", "test_frontends:wide_net", "tiny_training:tiny_data", batch_size=8,
        activation_bits=(8, 4, 3), norm_batches=1, device="cpu",
    )  # fmt: skip
    frontend, data = load_frontend("joint"), tiny_data()
    frontend.check(config, data)
    run = Run.create(tmp_path / "run", config, data, False, False)
    assert isinstance(frontend.train(run, data, Silent(), False), Table)
    return run.folder


class Silent(Progress):
    def start(self, title: str, total: int) -> None: ...
    def step(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


def test_both_registries_have_the_same_frontends() -> None:
    assert {name: load_frontend(name).settings for name in FRONTENDS} == CONFIGS
    for name, kind in CONFIGS.items():
        frontend = load_frontend(name)
        assert isinstance(frontend, Frontend) and "{run}" in frontend.next
        assert kind("r", "m", "d").frontend == name
    with pytest.raises(UserError, match="unknown frontend 'metamx': did you mean metamix"):
        load_frontend("metamx")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            QatConfig("q", "m", "d"),
            "made by frontend qat, whose bits are fixed: train another",
        ),
        (
            PtqConfig("p", "m", "d"),
            "made by frontend ptq, which searches no bits: choose them",
        ),
    ],
)
def test_frontends_without_candidates_refuse_a_search_in_their_own_words(
    config: Config, words: str, tmp_path: Path
) -> None:
    run = Run(tmp_path, config, SHAPE, 4)
    with pytest.raises(UserError, match=words):
        load_frontend(config.frontend).search_start(run)


@pytest.mark.parametrize(
    ("frontend", "kind"), [("qat", "metamix"), ("metamix", "ptq"), ("ptq", "qat")]
)
def test_a_recipe_of_another_frontend_is_refused(frontend: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"r belongs to frontend {kind}, not to {frontend}"):
        load_frontend(frontend).check(CONFIGS[kind]("r", "m", "d"), tiny_data())


@pytest.mark.parametrize("method", ["greedy", "hessian", "metamix", "dnas"])
def test_a_run_of_any_frontend_can_be_searched(
    method: str, joint_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--method", method, "--set", "finetune_epochs=1", "--out", out)
    result = search(joint_run, "--bops", BUDGET, *options)
    assert result.code == 0, result.err
    content = json.loads((out / "bits.json").read_text())
    assert 0.9 * BUDGET <= content["bops"] <= BUDGET and content["finetuned"]
    found = Run.open(out)
    assert isinstance(found.config, JointConfig) and found.has_weights(Stage.SEARCHED)
    kept = json.loads((out / "search.json").read_text())
    assert kept["finetune_epochs"] == 1 and kept["meta_epochs"] == 1
    assert "batch_size" not in kept


def test_a_front_in_the_run_itself_starts_from_its_meta_state(joint_run: Path) -> None:
    before = load_tensors(joint_run / Stage.META.file, "")[0]
    result = search(joint_run, "--bops", BUDGET, "--no-finetune")
    assert result.code == 0, result.err
    after = load_tensors(joint_run / Stage.META.file, "")[0]
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_settings_beside_the_recipe_are_held_to_when_resuming(
    joint_run: Path, tmp_path: Path
) -> None:
    def errors(*args: object) -> str:
        options = ("--method", "greedy", "--no-finetune", "--out", tmp_path / "out")
        return search(joint_run, "--bops", BUDGET, *options, *args).err

    assert "unknown recipe setting 'epochs'" in errors("--set", "epochs=3")
    assert "--set search_epochs=x: expected int" in errors("--set", "search_epochs=x")
    assert "error" not in errors("--set", "search_epochs=2")
    assert "search.json holds other settings than this command" in errors("--resume")
    assert "error" not in errors("--resume", "--set", "search_epochs=2")
    in_place = search(joint_run, "--bops", BUDGET, "--set", "alpha_lr=1")
    assert "has other candidates or settings than this search" in in_place.err


def test_metamix_recipes_say_what_a_search_does() -> None:
    recipe = MetaMixConfig("r", "m", "d", search_lambda=7.0, seed=3, alpha_lr=0.5)
    settings = search_settings(recipe)
    assert (settings.search_lambda, settings.alpha_lr, settings.seed) == (7.0, 0.5, 3)
    assert missing_settings(recipe) == []
    # Where a recipe says nothing, it is what MetaMix's would.
    plain = search_settings(JointConfig("r", "m", "d"))
    usual = MetaMixConfig("r", "m", "d")
    for name in missing_settings(JointConfig("r", "m", "d")):
        assert getattr(plain, name) == getattr(usual, name)
    assert isinstance(plain, SearchSettings) and plain.frontend == "joint"


def test_a_teacher_that_is_the_float_network_is_the_run_itself(tmp_path: Path) -> None:
    for teacher, expected in (("float", str(tmp_path)), ("x.pt", "x.pt"), ("", "")):
        run = Run(tmp_path, JointConfig("r", "m", "d", teacher=teacher), SHAPE, 4)
        assert settings_of(run, JointConfig).teacher == expected
    with pytest.raises(
        UserError, match=f"^run {tmp_path}: recipe r belongs to frontend joint"
    ):
        settings_of(run, QatConfig)


def test_metamix_trains_its_float_network_to_be_the_teacher(tmp_path: Path) -> None:
    settings = ["float_epochs=1", "meta_epochs=1", "teacher=float", *FAST]
    model = ("--model", "test_frontends:wide_net", "--data", "tiny_training:tiny_data")
    args = [part for setting in settings for part in ("--set", setting)]
    result = run_qtool("train", "metamix_fashion", *args, *model, "--out", tmp_path / "run")
    assert result.code == 0, result.err


def test_evaluating_leaves_random_numbers_alone(joint_run: Path) -> None:
    from qtool.data.batches import Batches
    from qtool.nn.seeded import seeded
    from qtool.training.evaluation import accuracy, recalibrate_norms

    run, data = Run.open(joint_run), tiny_data()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = nn.Sequential(nn.Dropout(0.5), build_float(run))
    results = []
    for _ in range(2):
        recalibrate_norms(model, Batches(data.train, 8, 3), 2)
        results.append({n: t.clone() for n, t in model.state_dict().items() if "running" in n})
        torch.rand(1)
        torch.set_rng_state(before)
        accuracy(model, data.test)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(3):
        inside = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), inside)


def test_stages_are_the_files_of_a_run() -> None:
    files = [stage.file for stage in Stage]
    names = ("float", "meta", "searched", "model", "corrections", "norms", "zero_shot")
    assert files == [f"{name}.safetensors" for name in names]
    assert sys.modules["qtool.runs.run"]._OWN_FILES[:7] == tuple(files)


def test_a_search_without_a_meta_state_leaves_nothing_behind(joint_run: Path) -> None:
    (joint_run / Stage.META.file).unlink()
    out = joint_run.parent / "out"
    for _ in range(2):
        refused = search(joint_run, "--bops", "1M", "--out", out)
        assert refused.code == 2 and "no meta.safetensors; training has not" in refused.err
        assert not out.exists()


def test_candidates_that_the_meta_state_lacks_are_refused_first(joint_run: Path) -> None:
    out = joint_run.parent / "out"
    refused = search(joint_run, "--bops", "1M", "--activations", "8,5", "--out", out)
    assert refused.code == 2 and "its meta-state has activations of" in refused.err
    assert not out.exists()
