"""`qtool analyse`: what the numbers mean, on a tiny network with a depthwise layer."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_qtool
from test_cli_errors import refused
from tiny_training import CLASSES, tiny_config, tiny_data
from torch import nn

from qtool.analyses import load_analysis
from qtool.analyses.activations import distance
from qtool.analyses.bit_changes import HOLD, schedule, variation
from qtool.analyses.meta_state import MetaMixRun, open_layers
from qtool.analyses.norms import Watch
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits, Selection
from qtool.frontends.metamix import frontend as metamix
from qtool.nn.control import select
from qtool.runs.run import Run
from qtool.settings.qat import QatConfig

BITS = (8, 2)


def depthwise_net(in_channels: int = 1, classes: int = CLASSES) -> nn.Module:
    parts = [nn.Conv2d(in_channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()]
    for groups in (8, 1):
        parts += [nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained MetaMix run."""
    config = replace(
        tiny_config("meta_epochs=1", "float_epochs=1"), model="test_analyses:depthwise_net",
        dataset="tiny_training:tiny_data", activation_bits=BITS,
    )  # fmt: skip
    run = Run.create(tmp_path_factory.mktemp("run"), config, tiny_data(), False, False)
    metamix.train(run, tiny_data(), Silent(), False)
    return run.folder


def analyse(*args: object, data: str = "tiny_training:tiny_data") -> object:
    return run_qtool("analyse", *args, *(("--data", data) if data else ()))


def contents(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir() if p.is_file()
    }  # fmt: skip


@pytest.fixture(scope="module")
def activations(folder: Path) -> dict:
    runs = [Run.open(folder)]
    return load_analysis("activations").analyse(runs, tiny_data(), 48, Silent())


def test_activations_are_those_in_front_of_every_open_layer(activations: dict) -> None:
    names = [(layer["name"], layer["depthwise"]) for layer in activations["layers"]]
    assert names == [("3", True), ("6", False)]
    assert activations["example"] == "3" and activations["shown"] == ["3", "6"]
    assert (activations["weight_bits"], activations["images"]) == ([32, 8, 4], 48)
    rows = [layer["distributions"][::-1] for layer in activations["layers"]]
    first, second = ({row["activations"]: row for row in found} for found in rows)
    # In front of layer 3 nothing has candidates; layer 6 reads what layer 3 made of 2 bits.
    assert first[2]["distance"] == 0 < second[2]["distance"] and second[8]["distance"] == 0
    for layer in activations["layers"]:
        widths = np.diff(layer["edges"])
        for row in layer["distributions"]:
            assert 0.98 < float(np.dot(widths, row["density"])) <= 1.001
            assert len(layer["distributions"]) == 2 * 2 * 3 * len(BITS)


def test_consistency_is_the_mean_distance(activations: dict) -> None:
    assert len(activations["consistency"]) == 2 * 2 * 3
    for case in activations["consistency"]:
        found = [
            row["distance"] for layer in activations["layers"]
            for row in layer["distributions"] if row["activations"] == 2
            and all(row[key] == case[key] for key in ("statistics", "state", "weights"))
        ]  # fmt: skip
        assert case["distance"] == case["by_bits"]["2"] == pytest.approx(np.mean(found))
        assert case["distance"] > 0


def test_distance_is_in_standard_deviations() -> None:
    values = np.random.default_rng(0).normal(3, 0.5, 4000).astype(np.float32)
    assert distance(values, values) == 0
    assert distance(values, values + values.std()) == pytest.approx(1, rel=1e-4)
    assert distance(np.zeros(9, np.float32), np.zeros(9, np.float32)) == 0


@pytest.mark.parametrize("training", [False, True])
def test_what_is_recorded_is_what_the_quantizer_rounds(folder: Path, training: bool) -> None:
    source = MetaMixRun([Run.open(folder)], tiny_data(), 48, "activations")
    model = source.network("meta", (4,))
    select(model, Selection(default=LayerBits(4, 2)))
    model.train(training)
    quantizer = open_layers(model)[1].input_quant
    seen: list[torch.Tensor] = []
    quantizer.register_forward_hook(lambda module, given, out: seen.extend((given[0], out)))
    with torch.no_grad():
        model(next(iter(source.batches().epoch(0)))[0])
        plain = quantizer.unrounded(seen[0])
    assert torch.equal(plain, seen[0]) != training  # in training the norm is left to it
    assert plain.min() == 0 and len(plain.unique()) > 100
    assert torch.allclose(quantizer.quantize_at(plain, 2), seen[1], atol=1e-5)


def test_every_candidate_is_drawn_as_often_and_a_drift_cancels() -> None:
    drawn, hold = schedule((8, 4, 3), 13 * HOLD, 0)
    assert hold == HOLD and len(drawn) == 12 * HOLD
    assert [drawn.count(b) for b in (8, 4, 3)] == [4 * HOLD] * 3
    assert schedule((8, 4, 3), 1, 0)[1] == 1
    drift = np.linspace(1, 2, len(drawn))[:, None]
    drifting = variation(drift, drawn, hold)
    assert max(drifting["variation"], drifting["noise"]) < 1e-3
    rng, shape = np.random.default_rng(0), drift.shape
    found = [variation(rng.normal(1, 0.1, shape), drawn, hold)["noise"] for _ in range(200)]
    # A mean of four visits has an error of 0.1 / 2.
    assert 0.9 < np.mean(np.square(found)) / 0.05**2 < 1.1
    level = {8: 1.0, 4: 1.2, 3: 0.8}
    trace = np.array([[level[b], 1.0] for b in drawn])
    found = variation(trace, drawn, hold)
    assert found["by_bits"] == {k: pytest.approx(v) for k, v in
                                (("8", 1.0), ("4", 1.1), ("3", 0.9))}  # fmt: skip
    assert found["variation"] == pytest.approx(np.std([1, 1.1, 0.9]))
    assert found["noise"] < 1e-12
    assert found["channel_variation"] == pytest.approx(np.std([1, 1.2, 0.8]) / 2)


@pytest.mark.parametrize(("state", "weights"), [("float", 32), ("float", 4), ("meta", 32)])
def test_a_step_moves_the_watched_norm_once(folder: Path, state: str, weights: int) -> None:
    source = MetaMixRun([Run.open(folder)], tiny_data(), 48, "norms")
    watch = Watch(source, state, weights, 4)
    before = int(watch.norm.get_buffer("num_batches_tracked"))
    trained = watch.layer.layer.weight.detach().clone()
    trace = watch.trace([8, 2, 2, 8], 1, Silent())
    assert trace.shape == (4, 8) and (np.diff(trace, axis=0) != 0).all()
    assert int(watch.norm.get_buffer("num_batches_tracked")) - before == 5
    assert not torch.equal(watch.layer.layer.weight, trained)
    assert (watch.layer.weight_quant.selected is None) == (weights == 32)


@pytest.mark.parametrize("what", ["norms", "activations"])
def test_the_command_writes_data_and_picture_and_leaves_the_run(
    folder: Path, what: str
) -> None:
    before = contents(folder)
    done = analyse(what, folder, "--images", 16)
    assert done.code == 0, done.err
    assert contents(folder) == before
    content = json.loads((folder / "analyses" / f"{what}.json").read_text())
    assert (content["format"], content["analysis"]) == (1, what)
    if what == "norms":
        assert (content["layer"], content["depthwise"], content["hold"]) == ("3", True, 1)
        assert [len(case["variance"]) for case in content["cases"]] == [4, 4, 4]
        assert "4-bit weights" in done.out and "variation" in done.out
    picture = folder / "analyses" / f"{what}.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in done.out
    refused(analyse(what, folder), f"{what}.json exists already", "--force")


def qat_run(folder: Path, *accuracies: float, bops: int = 5_000_000) -> Path:
    """A run as `qtool train` with frontend qat leaves it, as far as points are concerned."""
    config = QatConfig("q", "test_analyses:depthwise_net", "tiny_training:tiny_data")
    run = Run.create(folder, config, tiny_data(), False, False)
    run.save_bits({"bops": bops, "layers": {"0": [8, 8], "3": [4, 4]}})
    run.add_metrics(phase="float", test_accuracy=91.5)
    for accuracy in accuracies:
        run.add_metrics(phase="qat", epoch=1, loss=0.1)
        run.add_metrics(phase="qat", test_accuracy=accuracy)
    return folder


def points(*folders: Path) -> list[dict]:
    runs = [Run.open(folder) for folder in folders]
    found: list[dict] = load_analysis("pareto").analyse(runs, None, 0, Silent())["points"]
    return found


def test_pareto_takes_the_newest_accuracy_or_a_check_of_the_same_bits(tmp_path: Path) -> None:
    run = qat_run(tmp_path / "run", 88.0, 89.0)
    (point,) = points(run)
    assert (point["accuracy"], point["deployed"]) == (89.0, False)
    assert (point["method"], point["source"]) == ("uniform", "metrics.jsonl")
    assert (point["weights"], point["activations"]) == ([8, 4], [8, 4])
    report = {"bops": 5_000_000, "accuracy": {"float": 99.0, "fake_quant": 98.0, "ort": 88.9}}
    check = run / "check.json"
    check.write_text(json.dumps({"models": [{"bops": 7, "accuracy": {"ort": 1}}, report]}))
    (point,) = points(run)
    assert (point["accuracy"], point["deployed"]) == (88.9, True)
    check.write_text(json.dumps(report | {"bops": 6_000_000}))
    assert points(run)[0]["source"] == "metrics.jsonl"
    check.write_text('{"bops": 5000000}')
    refused(analyse("pareto", run, data=""), "check.json is damaged", "accuracy")


def given(bops: int, accuracy: float, method: str = "metamix") -> dict:
    bits = {"weights": [4], "activations": [8, 4]}
    costs = {"bops": bops, "budget_bops": 1.5 * bops}
    return {
        "run": "sub", "accuracy": accuracy, "deployed": True, "method": method, **bits, **costs
    }  # fmt: skip


def test_sub_runs_say_what_the_points_file_does_not(tmp_path: Path) -> None:
    top = qat_run(tmp_path / "top", 88.0)
    (top / "bits.json").unlink()
    fast = qat_run(top / "pareto" / "5M", 80.0)
    rows = [{"run": name, "bops": 5_000_000, "accuracy": accuracy, "deployed": False,
             "method": "dnas"} for name, accuracy in (("5M", 80.0), ("5M", None))]  # fmt: skip
    (top / "pareto" / "pareto.json").write_text(json.dumps({"format": 1, "points": rows}))
    (point,) = points(top)
    assert (point["accuracy"], point["deployed"], point["run"]) == (80.0, False, str(fast))
    assert (point["weights"], point["budget_bops"]) == ([8, 4], None)
    report = {"bops": 5_000_000, "accuracy": {"reference": 79.5, "openvino": 10.0}}
    (fast / "check.json").write_text(json.dumps(report))
    assert [(p["accuracy"], p["deployed"]) for p in points(top)] == [(79.5, True)] * 2


def test_pareto_command_joins_runs_and_marks_each_methods_front(tmp_path: Path) -> None:
    run, uniform = qat_run(tmp_path / "a", 1.0), qat_run(tmp_path / "b", 89.0)
    rows = [given(3_000_000, 90.0), given(4_000_000, 89.9), given(4_000_000, 90.5),
            given(3_500_000, 80.0, "dnas")]  # fmt: skip
    (run / "pareto.json").write_text(json.dumps({"format": 1, "points": rows}))
    done = analyse("pareto", run, uniform, "--out", tmp_path / "out", data="")
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "out" / "pareto.json").read_text())
    found = [(p["method"], p["accuracy"], p["front"]) for p in content["points"]]
    assert found == [
        ("dnas", 80.0, True), ("metamix", 90.0, True), ("metamix", 90.5, True),
        ("metamix", 89.9, False), ("uniform", 89.0, True),
    ]  # fmt: skip
    assert content["points"][0]["run"] == str(run / "sub")
    assert content["float_accuracy"] == {str(run): 91.5, str(uniform): 91.5}
    assert (tmp_path / "out" / "pareto.png").exists() and "3.500 M" in done.out


def test_mistakes_are_one_line_and_write_nothing(folder: Path, tmp_path: Path) -> None:
    qat = qat_run(tmp_path / "qat")
    refused(analyse("norms", qat), "made by frontend qat", "takes a run of frontend metamix")
    refused(analyse("pareto", qat, data=""), "no accuracy", "qtool check")
    two = analyse("activations", folder, folder, "--out", tmp_path / "out")
    refused(two, "got 2 runs, expected one")
    refused(analyse("paretto", qat), "is not one of", "pareto")
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    shutil.rmtree(bare / "analyses", ignore_errors=True)
    (bare / "meta.safetensors").unlink()
    refused(analyse("pareto", bare, data=""), "neither pareto.json nor bits.json", "search")
    refused(analyse("activations", bare), "no meta.safetensors", "--resume continues it")
    (qat / "pareto.json").write_text('{"format": 1, "points": [{"run": "x"}]}')
    refused(analyse("pareto", qat, data=""), "pareto.json is damaged", "bops")
    assert not (qat / "analyses").exists() and not (bare / "analyses").exists()
    assert not (tmp_path / "out").exists()
