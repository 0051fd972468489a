"""Frontend coquant: runs, what they keep, resuming, deployed modules at every precision."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cifar import write_cifar10
from conftest import Result, run_qtool
from torch import Tensor

from passes.emit.onnx.target import OnnxTarget
from passes.emit.tvm.target import TvmTarget
from qtool.checking.check import check
from qtool.core.choose import Serves
from qtool.core.progress import Silent
from qtool.core.selection import read_selection
from qtool.data import load_dataset
from qtool.data.batches import Batches, to_batch
from qtool.export.export import ExportOptions, export
from qtool.networks import load_adaptive
from qtool.nn.control import quant_layers, select
from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.norm_rows import switches
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.training import loop
from qtool.training.evaluation import accuracy, recalibrate_norms

SMALL = (
    "model=test_coquant:cells", "batch_size=20", "norm_batches=2", "calibration_images=8",
    "float_epochs=0", "epochs=2", "warmup=0", "weight_quantizer=sat",
)  # fmt: skip
MIXED = "w4a4,3.one.0=w8a8,4.*=w2a2"
PRECISIONS = ("w8a8", "w6a6", "w4a4", "w2a2")


def train(data: Path, out: Path, *settings: str, resume: bool = False) -> Result:
    chosen = (word for each in (*SMALL, *settings) for word in ("--set", each))
    more = ("--resume",) if resume else ()
    return run_qtool(
        "train", "coquant_mobilenet_v2_small_cifar", "--data", data, "--out", out, *chosen,
        *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar10(tmp_path_factory.mktemp("source"), images=40)


@pytest.fixture(scope="module")
def joint_run(source: Path) -> Path:
    done = train(source, source / "run")
    assert done.code == 0, done.err
    assert "next: qtool eval" in done.out
    return source / "run"


def test_a_run_keeps_what_differs_at_every_other_precision(joint_run: Path) -> None:
    run = Run.open(joint_run)
    tensors, model = run.load_weights(Stage.NORMS), run.load_weights(Stage.MODEL)
    names = {name.partition("/")[::2] for name in tensors}
    assert {key for key, _ in names} == set(PRECISIONS[1:])
    norms = ("3.one.0", "3.two.0", "4.one.0", "4.two.0", "5")
    parts = ("weight", "bias", "running_mean", "running_var")
    wanted = {f"{layer}.norm.{part}" for layer in norms for part in parts}
    for key in PRECISIONS[1:]:
        assert {name for own, name in names if own == key} == wanted
    assert wanted < model.keys() and not any("rows" in name for name in model)
    assert len(model["4.one.0.input_quant.alpha"]) == 4
    measured = [row["bits"] for row in run.metrics("joint") if "bits" in row]
    assert measured == list(PRECISIONS)
    assert not run.path("checkpoint.safetensors").exists()


def test_rows_are_picked_layer_by_layer(joint_run: Path) -> None:
    run = Run.open(joint_run)
    model, tensors = load_adaptive(run), run.load_weights(Stage.NORMS)
    select(model, read_selection(MIXED))
    found = {s.layer: s for s in switches(model) if isinstance(s, SwitchNorm)}
    assert {name: s.key for name, s in found.items()} == {
        "3.one.0": "w8a8", "3.two.0": "w4a4", "4.one.0": "w2a2", "4.two.0": "w2a2",
        "5": "w4a4",
    }  # fmt: skip
    assert all(s.serves is Serves.OWN for s in found.values())
    assert found["4.one.0"].picked.weight.equal(tensors["w2a2/4.one.0.norm.weight"])
    assert found["3.one.0"].picked.bias.equal(
        run.load_weights(Stage.MODEL)["3.one.0.norm.bias"]
    )


def test_statistics_are_those_of_a_precision_alone(joint_run: Path, source: Path) -> None:
    data = load_dataset("cifar10", source)
    model = load_adaptive(Run.open(joint_run))
    batches = Batches(data.train, 20, 0, ("crop4", "flip"))
    for bits in PRECISIONS:
        select(model, read_selection(bits))
        norms = [layer.batch_norm for layer in quant_layers(model)]
        kept = [norm.state_dict(keep_vars=False) for norm in norms if norm is not None]
        before = [{n: t.clone() for n, t in state.items()} for state in kept]
        recalibrate_norms(model, batches, 2)
        after = [norm.state_dict() for norm in norms if norm is not None]
        for old, new in zip(before[1:], after[1:], strict=True):
            for name in ("running_mean", "running_var"):
                torch.testing.assert_close(new[name], old[name])


@pytest.mark.parametrize("bits", [
    "w2a2", MIXED, *(pytest.param(bits, marks=pytest.mark.nightly) for bits in PRECISIONS[:3]),
])  # fmt: skip
def test_a_selection_is_deployed_exactly(
    joint_run: Path, source: Path, tmp_path: Path, bits: str
) -> None:
    paths = {OnnxTarget(): tmp_path / "model.onnx", TvmTarget(): tmp_path / "model.so"}
    for target, path in paths.items():
        export(joint_run, ExportOptions(target, bits=bits), path, force=False)
    runtimes = ["reference", "ort", "tvm"]
    (record,) = check([*paths.values()], source, runtimes, None, Silent())
    report = record.to_json()
    assert [report["parity"][name]["mismatched"] for name in ("ort", "tvm")] == [0, 0]
    selection, model = read_selection(bits), load_adaptive(Run.open(joint_run))
    select(model, selection)
    wanted = selection.resolve(report["layers"])
    inner = {n: tuple(b) for n, b in report["layers"].items() if n not in ("0", "10")}
    assert inner == {n: (b.weight, b.activation) for n in inner if (b := wanted.of(n))}
    data = load_dataset("cifar10", source)
    assert report["accuracy"]["ort"] == accuracy(model, data.test)


def test_all_precisions_are_exported_and_are_the_networks_integers(
    joint_run: Path, tmp_path: Path
) -> None:
    """The witness compares every pair's integers with the network's."""
    done = run_qtool(
        "export", joint_run, "--bits", "all", "--target", "onnx", "-o", tmp_path / "pairs"
    )
    assert done.code == 0, done.err
    assert (done.out + done.err).count("witness: 0 of") == 4, done.err
    assert {path.stem for path in (tmp_path / "pairs").glob("w*.onnx")} == set(PRECISIONS)


def test_all_precisions_are_evaluated(joint_run: Path, source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(joint_run, run)
    done = run_qtool("eval", run, "--bits", "all", "--data", source)
    assert done.code == 0, done.err
    found = json.loads((run / "eval.json").read_text())
    assert set(found["pairs"]) == set(PRECISIONS)
    assert {pair["where"] for pair in found["pairs"].values()} == {"ort"}
    assert found["savings"]["adaptive_passes"] == found["savings"]["dedicated_passes"]
    measured = {r["bits"]: r["test_accuracy"] for r in Run.open(run).metrics() if "bits" in r}
    assert {k: pair["accuracy"] for k, pair in found["pairs"].items()} == measured


@pytest.mark.parametrize(("method", "stop"), [
    ("save_checkpoint", 2), ("save_weights", 2),
    pytest.param("save_weights", 1, marks=pytest.mark.nightly),
    pytest.param("save_weights", 3, marks=pytest.mark.nightly),
])  # fmt: skip
def test_a_stopped_run_continues_to_the_same_bytes(
    source: Path, joint_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    method: str, stop: int,
) -> None:  # fmt: skip
    """In the middle of an epoch, and between what is saved at the end."""
    calls = 0
    owner = loop if method == "save_checkpoint" else Run
    original = getattr(owner, method)

    def stopping(*args: object) -> object:
        nonlocal calls
        calls += 1
        result = original(*args)
        if calls == stop:
            raise KeyboardInterrupt
        return result

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, stopping)
        done = train(source, out, "checkpoint_steps=3")
        assert done.code == 130, done.err
    done = train(source, out, "checkpoint_steps=3", resume=True)
    assert done.code == 0, done.err
    for stage in (Stage.FLOAT, Stage.NORMS, Stage.MODEL):
        assert (out / stage.file).read_bytes() == (joint_run / stage.file).read_bytes(), stage


def test_a_vanilla_run_has_one_norm_for_all(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(source, out, "method=vanilla", "epochs=1").code == 0
    run = Run.open(out)
    assert not run.has_weights(Stage.NORMS) and not switches(load_adaptive(run))
    assert len(run.load_weights(Stage.MODEL)["4.one.0.input_quant.alpha"]) == 1
    logits = [_logits(load_adaptive(run), source, bits) for bits in ("w8a8", "w2a2")]
    assert not logits[0].equal(logits[1])
    path = tmp_path / "model.onnx"
    export(out, ExportOptions(OnnxTarget(), bits="w2a2"), path, force=False)
    (record,) = check([path], source, ["reference", "ort"], None, Silent())
    assert record.to_json()["parity"]["ort"]["mismatched"] == 0


@torch.no_grad()
def _logits(model: torch.nn.Module, source: Path, bits: str) -> Tensor:
    select(model.eval(), read_selection(bits))
    x, _ = to_batch(load_dataset("cifar10", source).test, slice(0, 8))
    out: Tensor = model(x)
    return out


@pytest.mark.parametrize("method", [
    "double_rounding",
    *(pytest.param(n, marks=pytest.mark.nightly) for n in ("any_precision", "adabits")),
])  # fmt: skip
def test_other_methods_train_and_are_deployed(
    method: str, source: Path, tmp_path: Path
) -> None:
    out, path = tmp_path / "run", tmp_path / "model.onnx"
    own = ("weight_quantizer=",)
    done = train(source, out, f"method={method}", "epochs=1", *own)
    assert done.code == 0, done.err
    export(out, ExportOptions(OnnxTarget(), bits="w4a4"), path, force=False)
    (record,) = check([path], source, ["reference", "ort"], None, Silent())
    assert record.to_json()["parity"]["ort"]["mismatched"] == 0


@pytest.mark.parametrize(("bits", "message"), [
    ("w5a5", "w5a5 was not trained; its grids can be interpolated between those of 4"),
    ("w4a4,3.one.0=w4a3", "layer 3.one.0: activation bits 3 were not trained"),
    ("w4a2", "layer 3.one.0: its BatchNorm was never trained at weights of 4 and inputs of 2"),
    ("w4a4,5=w8a4", "layer 5: its BatchNorm was never trained at weights of 8 and inputs of 4 "
                    "bits; each layer may have w8a8, w2a2, w4a4, w6a6"),
])  # fmt: skip
def test_export_refuses_what_was_not_trained(
    joint_run: Path, tmp_path: Path, bits: str, message: str
) -> None:
    path = tmp_path / "model.onnx"
    done = run_qtool("export", joint_run, "--target", "onnx", "--bits", bits, "-o", path)
    assert (done.code, done.err.count("\n")) == (2, 1) and message in done.err, done.err
    assert not path.exists()


def test_statistics_are_taken_again_beside_a_precisions_own_parameters(
    joint_run: Path, source: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(joint_run, run)
    asked = ("export", run, "--target", "onnx", "--bits", "w4a4", "-o", tmp_path / "m.onnx")
    done = run_qtool(*asked, "--calibration", source)
    assert done.code == 0 and "statistics at w4a4: 40 images" in done.err, done.err
    old, new = (Run.open(folder).load_weights(Stage.NORMS) for folder in (joint_run, run))
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        torch.testing.assert_close(new[name], tensor)
    assert not old["w4a4/5.norm.weight"].equal(old["w2a2/5.norm.weight"])
