"""`qtool search` on jointly trained runs: fronts without training, resumed, exported."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, run_qtool
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import tiny_data

from passes.emit.onnx.target import OnnxTarget
from qtool.checking.check import check
from qtool.core.errors import UserError
from qtool.core.pairs import pair_key
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits, selection_from_json
from qtool.data.part import Part, digest_of
from qtool.export.export import ExportOptions, export
from qtool.networks import load_deployed, load_prepared
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.recipes import load_recipe
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.search.front import FrontRecord, on_front, read_front
from qtool.search.held_out import hold_out
from qtool.search.measured import divergences_of
from qtool.search.request import Request
from qtool.search.space import SearchLayer
from qtool.settings.mebqat import MebqatConfig
from qtool.tensor_file import load_tensors
from qtool.training.frontend import load_frontend

# BOPs: between what uniform pairs of `wide_net` cost.
BUDGETS = ("--bops", "60k", "--bops", "90k")
DATA = "tiny_training:tiny_data"


def recipe() -> MebqatConfig:
    return MebqatConfig(
        "tiny", "test_frontends:wide_net", DATA, batch_size=8, epochs=1, norm_batches=2,
        weight_bits=(8, 4, 2, 32), activation_bits=(8, 4, 3, 32), shared_steps=False,
        calibration_images=16, device="cpu", augment=(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MEBQAT, with three inner layers to choose bits for."""
    folder = tmp_path_factory.mktemp("joint") / "run"
    run = Run.create(folder, recipe(), tiny_data(), False, False)
    load_frontend("mebqat").train(run, tiny_data(), Silent(), False)
    return folder


@pytest.fixture(scope="module")
def searched(trained: Path) -> Path:
    """The run with a front inside."""
    run = Path(shutil.copytree(trained, trained.parent / "searched"))
    assert search(run, "--front", 4).code == 0
    return run


@pytest.fixture
def joint_run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def front(searched: Path, tmp_path: Path) -> Path:
    """A copy of the run with a front that a test may damage."""
    return Path(shutil.copytree(searched, tmp_path / "run"))


def search(run: Path, *args: object) -> Result:
    return run_qtool("search", run, "--data", DATA, *args)


def record_of(run: Path) -> FrontRecord:
    found = read_front(run / "pareto" / "pareto.json")
    assert found is not None
    return found


def bits_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "bits.json").read_text())
    return content


def refused(run: Path, *args: object) -> str:
    done = search(run, *args)
    lines = done.err.strip().splitlines()
    assert done.code == 2 and len(lines) == 1, done.err
    return lines[0].removeprefix("qtool: error: ")


# --- the front ---


def test_budgets_are_met_in_exact_bops_and_the_run_stays(
    trained: Path, searched: Path
) -> None:
    record = record_of(searched)
    assert len(record.points) == 4 and len(record.uniform) == 9
    for point in record.points:
        content = bits_of(searched / "pareto" / point.run)
        pairs, macs = content["layers"], content["layer_macs"]
        assert content["bops"] == point.bops
        assert point.bops == sum(macs[name] * w * a for name, (w, a) in pairs.items())
        assert 0.97 * (point.budget.bops or 0) <= point.bops <= (point.budget.bops or 0)
        assert content["finetuned"] is False and point.accuracy is None
        assert selection_from_json(content, "").layers
    low, high = (record.uniform[i].bops for i in (0, -1))
    budgets = [point.budget.bops or 0 for point in record.points]
    ratio = (high / low) ** (1 / 5)
    assert np.allclose(budgets, [low * ratio**i for i in range(1, 5)], rtol=1e-3)
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    now = {p.name: p.read_bytes() for p in searched.iterdir() if p.is_file()}
    assert now == before


def test_a_front_is_one_json_a_table_and_a_picture(front: Path) -> None:
    shown = search(front, "--front", 4)
    assert shown.code == 0 and (front / "pareto" / "pareto.png").stat().st_size > 10_000
    for name in ("w8a8, all layers", "w2a3, all layers", record_of(front).points[0].run):
        assert name in shown.out
    content = json.loads((front / "pareto" / "pareto.json").read_text())
    assert [p["deployed"] for p in content["points"]] == [False] * 4
    assert {p["bits"] for p in content["uniform"]} >= {"w8a8", "w4a4", "w2a3"}


def test_the_front_rises_once_dominated_points_are_pruned(searched: Path) -> None:
    record = record_of(searched)
    every = [*record.points, *record.uniform]
    kept = sorted((one.bops, one.held_out) for one in every if one.front)
    assert kept and all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(kept))
    for one in every:
        if not one.front:
            assert any(bops <= one.bops and held >= one.held_out for bops, held in kept)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12))
def test_pruning_keeps_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    marks = on_front(points)
    kept = sorted(point for point, mark in zip(points, marks, strict=True) if mark)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(kept))
    for cost, accuracy in points:
        assert any(c <= cost and a >= accuracy for c, a in kept)


def test_held_out_accuracy_is_that_of_what_was_saved(searched: Path) -> None:
    record, data = record_of(searched), tiny_data()
    rest, images = hold_out(data, recipe(), 2000)
    assert len(images) == record.question.images == 48 // 5
    point = Run.open(searched / "pareto" / record.points[1].run)
    model = load_deployed(point, point.selection()).eval()
    x = torch.from_numpy(images.load(slice(None))) / 255
    with torch.no_grad():
        right = (model(x).argmax(1).numpy() == images.labels).mean()
    assert 100 * right == pytest.approx(record.points[1].held_out)
    assert len(rest.train) == 48 - len(images)


# --- what a point is ---


def test_a_point_has_the_runs_weights_and_statistics_of_its_own(searched: Path) -> None:
    point = searched / "pareto" / record_of(searched).points[1].run
    mine, theirs = (load_tensors(f / "model.safetensors", "")[0] for f in (point, searched))
    assert mine.keys() == theirs.keys()
    moved = {name for name in mine if not torch.equal(mine[name], theirs[name])}
    assert moved and all("running" in name or "num_batches" in name for name in moved)


def test_a_point_is_exported_exactly(searched: Path, tmp_path: Path) -> None:
    point = searched / "pareto" / record_of(searched).points[1].run
    output = tmp_path / "model.onnx"
    export(point, ExportOptions(OnnxTarget()), output, force=False)
    (report,) = check([output], DATA, ["reference", "ort"], None, Silent())
    content = report.to_json()
    assert content["parity"]["ort"]["mismatched"] == 0
    assert content["parity"]["ort"]["compared"] > 0
    assert content["bops"] == bits_of(point)["bops"]
    # At these bits the run itself has no statistics, and says so.
    bits = ("--bits", point / "bits.json", "-o", tmp_path / "other.onnx")
    done = run_qtool("export", searched, "--target", "onnx", *bits)
    assert done.code == 2 and "statistics were never taken at these bits" in done.err
    # And the point has none at others.
    for bits in ("w8a8", "w4a4,w8a8", "all"):
        new = ("--bits", bits, "-o", tmp_path / "new")
        done = run_qtool("export", point, "--target", "onnx", *new)
        assert done.code == 2 and "with statistics of its own bits only" in done.err, done.err
        assert not (tmp_path / "new").exists()
    measured = run_qtool("eval", point)
    assert measured.code == 2 and "has bits of its own for each layer" in measured.err


def test_layers_take_the_row_of_their_own_bits_where_rows_may_be_mixed(
    tmp_path: Path,
) -> None:
    """CoQuant's factors are those of each layer's precision; only statistics are new."""
    folder = tmp_path / "run"
    config = replace(
        load_recipe("coquant_fashion"), model="test_frontends:wide_net", dataset=DATA,
        batch_size=8, float_epochs=0, epochs=1, calibration_images=16, device="cpu",
        augment=(), norm_batches=2, activation_bits=(8, 4, 2), weight_bits=(8, 4, 2),
    )  # fmt: skip
    run = Run.create(folder, config, tiny_data(), False, False)
    load_frontend("coquant").train(run, tiny_data(), Silent(), False)
    assert search(folder, "--front", 2).code == 0
    record = record_of(folder)
    assert [pair.bits for pair in record.uniform] == ["w2a2", "w4a4", "w8a8"]
    rows, own = run.load_weights(Stage.NORMS), run.load_weights(Stage.MODEL)
    names = {
        path: module.name for path, module in load_prepared(run).named_modules()
        if isinstance(module, QuantLayer)
    }  # fmt: skip
    for point in record.points:
        place = Run.open(folder / "pareto" / point.run)
        bits, state = place.selection().layers, place.load_weights(Stage.MODEL)
        assert all(pair.weight == pair.activation for pair in bits.values())
        assert state.keys() == own.keys()
        for name, tensor in state.items():
            path, _, part = name.rpartition(".norm.")
            if part in ("weight", "bias"):
                key = f"{pair_key(bits[names[path]])}/{name}"
                assert tensor.equal(rows.get(key, own[name])), key
            elif not part:
                assert tensor.equal(own[name]), name
    output = tmp_path / "model.onnx"
    export(folder / "pareto" / record.points[0].run, ExportOptions(), output, force=False)
    (report,) = check([output], DATA, ["reference", "ort"], None, Silent())
    assert report.to_json()["parity"]["ort"]["mismatched"] == 0


# --- methods ---


def test_what_differs_in_both_tensors_is_the_sum_of_both() -> None:
    choices = tuple(LayerBits(w, a) for w in (8, 4) for a in (8, 2))
    asked = list[LayerBits]()

    def measure(bits: LayerBits) -> float:
        asked.append(bits)
        return float(bits.weight * bits.activation)

    found = divergences_of(SearchLayer("layer", 1, 1, choices), measure)
    assert list(found.values()) == [0.0, 16.0, 32.0, 48.0]
    assert sorted(map(pair_key, asked)) == ["w4a8", "w8a2"]
    asked.clear()
    diagonal = SearchLayer("layer", 1, 1, (LayerBits(8, 8), LayerBits(4, 4)))
    assert list(divergences_of(diagonal, measure).values()) == [0.0, 16.0]
    assert asked == [LayerBits(4, 4)]


def test_gradients_of_alpha_alone_search_too(joint_run: Path) -> None:
    options = ("--method", "metamix", "--set", "search_epochs=1", "--activations", "8,4")
    done = search(joint_run, "--bops", "90k", *options)
    assert done.code == 0, done.err
    (point,) = record_of(joint_run).points
    assert point.method == "metamix" and point.bops <= 90_000
    content = bits_of(joint_run / "pareto" / point.run)
    assert {a for _, a in content["layers"].values()} <= {8, 4}
    mine, theirs = (
        load_tensors(f / "model.safetensors", "")[0]
        for f in (joint_run / "pareto" / point.run, joint_run)
    )
    assert all(torch.equal(mine[n], theirs[n]) for n in mine if n.endswith(("weight", "step")))


def test_fine_tuning_is_on_request(joint_run: Path) -> None:
    settings = ("--set", "finetune_epochs=1", "--finetune")
    assert search(joint_run, "--bops", "90k", *settings).code == 0
    (point,) = record_of(joint_run).points
    assert point.accuracy is not None
    assert bits_of(joint_run / "pareto" / point.run)["finetuned"] is True


# --- going on ---


def test_a_front_goes_on_where_it_was(joint_run: Path) -> None:
    assert search(joint_run, *BUDGETS[:2]).code == 0
    first = joint_run / "pareto" / "60K"
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    shown = search(joint_run, *BUDGETS)
    assert shown.code == 0 and "measuring" not in shown.err and "uniform" not in shown.err
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    assert [point.run for point in record_of(joint_run).points] == ["60K", "90K"]


def test_what_an_interruption_left_is_not_measured_again(front: Path) -> None:
    """As if killed in the middle of the table, and before the last point was kept."""
    folder, whole = front / "pareto", record_of(front)
    table = json.loads((folder / "divergences.json").read_text())
    content = json.loads((folder / "pareto.json").read_text())
    last = list(table["layers"])[-1]
    cut = {**table, "layers": {k: v for k, v in table["layers"].items() if k != last}}
    (folder / "divergences.json").write_text(json.dumps(cut))
    content["points"].pop()
    (folder / "pareto.json").write_text(json.dumps(content))
    shown = search(front, "--front", 4)
    assert shown.code == 0 and "measuring 1/1" in shown.err
    assert json.loads((folder / "divergences.json").read_text()) == table
    assert record_of(front) == whole


def test_pairs_that_were_never_trained_are_no_candidates(
    joint_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.onnx"
    bits = ("--bits", "w3a4", "--calibration", DATA, "--no-witness", "-o", output)
    done = run_qtool("export", joint_run, "--target", "onnx", *bits)
    assert done.code == 0 and (joint_run / "zero_shot.safetensors").exists(), done.err
    shown = search(joint_run, *BUDGETS)
    assert shown.code == 0, shown.err
    record = record_of(joint_run)
    assert len(record.points) == 2 and not record.has("w3a4")


def test_other_weights_are_searched_anew(front: Path) -> None:
    run = Run.open(front)
    state = run.load_weights(Stage.MODEL)
    run.save_weights(Stage.MODEL, {name: tensor.clone() for name, tensor in state.items()})
    assert "of other weights" not in search(front, "--front", 4).err
    name = next(name for name in state if name.endswith("layer.weight"))
    run.save_weights(Stage.MODEL, {**state, name: state[name] * 1.5})
    shown = search(front, "--front", 4)
    assert shown.code == 0 and "is of other weights: everything is searched again" in shown.err
    assert "measuring" in shown.err


# --- refusals ---


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--front", 4, "--bops", "60k"), "--front chooses budgets itself: leave out the"),
        (("--front", 9999), "--front 9999: too many between"),
        (("--bops", "1"), "budget 1BOPs is below every selection; reachable:"),
        (("--bops", "90k", "--method", "hessian"), "--method hessian does not search jointly "
         "trained weights, as this run has them: choose metamix or measured"),
        (("--bops", "90k", "--weights", "8,5"), "--weights 8,5: the run was not trained at 5 "
         "bits, but at 8,4,2"),
        (("--bops", "90k", "--weights", "8", "--activations", "4"), "w8a4 of the run's leaves "
         "nothing to search"),
        (("--front", 4, "--method", "metamix"), "holds a front of method measured over w8a8,"),
        (("--front", 4, "--activations", "8,4"), "choose another --out, or replace it with"),
        (("--front", 4, "--held-out", 5), "measured on 5 images: choose another --out"),
        (("--front", 4, "--set", "norm_batches=1"), "recipe.json holds other settings than"),
        (("--front", 4, "--set", "alpha_lr=0.3"), "search.json holds other settings than"),
        (("--out", "RUN", "--front", 2), "is the run itself: leave it out, or name another"),
        (("--method", "metamix", "--set", "fixed_meta_state=false", "--out", "NEW", "--bops",
          "90k"), "jointly trained weights stay as they are in a search"),
    ],
)  # fmt: skip
def test_refusals(args: Sequence[object], text: str, front: Path, tmp_path: Path) -> None:
    before = {f: f.read_bytes() for f in front.rglob("*") if f.is_file()}
    places = {"RUN": front, "NEW": tmp_path / "new"}
    done = search(front, *(places.get(str(arg), arg) for arg in args))
    assert done.code == 2 and text in done.err.strip().splitlines()[-1], done.err
    assert {f: f.read_bytes() for f in front.rglob("*") if f.is_file()} == before


def test_a_result_is_no_run_to_search(searched: Path) -> None:
    point = searched / "pareto" / record_of(searched).points[0].run
    assert "is what a search chose" in refused(point, "--bops", "90k")


def test_measured_is_of_jointly_trained_runs() -> None:
    with pytest.raises(UserError, match="measured does not search a meta-state, as this run"):
        Request(method="measured").for_run(is_joint=False)
    asked = [Request().for_run(is_joint) for is_joint in (True, False)]
    assert [(one.method, one.finetune) for one in asked] == [
        ("measured", False), ("metamix", True)
    ]  # fmt: skip


# --- images ---


def test_images_are_held_out_of_the_search() -> None:
    data, config = tiny_data(), recipe()
    rest, held = hold_out(data, config, 6)
    assert isinstance(rest.train, Part) and isinstance(held, Part)
    rows = [*rest.train.rows.tolist(), *held.rows.tolist()]
    assert sorted(rows) == list(range(48)) and len(held) == 6
    assert np.array_equal(held.load(slice(2)), data.train.load(held.rows[:2]))
    assert np.array_equal(held.labels, data.train.labels[held.rows])
    assert digest_of(held) != digest_of(held.head(5)) and held.shape == (1, 8, 8)


def test_images_that_training_left_out_come_first() -> None:
    data, config = tiny_data(), replace(recipe(), train_images=40)
    rest, held = hold_out(data, config, 8)
    assert isinstance(held, Part) and held.rows.tolist() == list(range(40, 48))
    assert rest is data
    _, among = hold_out(data, config, 9)  # more than there are
    assert isinstance(among, Part) and max(among.rows.tolist()) < 40 and len(among) == 8
