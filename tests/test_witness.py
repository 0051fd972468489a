"""The witness: what is written is compared with where it comes from, and refused if wrong."""

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import foreign_check
import foreign_files
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import run_qtool
from test_cli_errors import refused
from torch import nn

from passes.lower import layers
from passes.twins import twins_of
from qtool import networks
from qtool.checking.check import check
from qtool.checking.record import CheckRecord
from qtool.checking.speed import slow, why_slow
from qtool.core.dialect import Grid
from qtool.core.progress import Silent
from qtool.data import load_dataset
from qtool.data.images import to_float
from qtool.export import trace
from qtool.export.adaptive import RunSource
from qtool.export.export import export_float, integer_model
from qtool.export.foreign_import import read_foreign
from qtool.nn.control import calibrate, quantizers
from qtool.runs.run import Run
from qtool.runs.sample import read_sample
from qtool.runs.stage import Stage
from qtool.settings.ptq import PtqConfig
from qtool.witness.figures import LOWEST_DB, SAME_DB, differing, largest_steps, snr_db
from qtool.witness.images import Asked
from qtool.witness.record import Differing, WitnessRecord
from qtool.witness.verdict import sentence
from qtool.witness.witness import FileLook, RunLook
from runtimes.latency import Latency

# A user's network and data, as `--model test_witness:Net --data test_witness:data`.


class Net(nn.Module):
    """A residual block whose activation has an option that matters."""

    input_shape = (3, 12, 12)

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.leaky = nn.LeakyReLU(0.9)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.leaky(self.stem(x))
        x = x + self.relu(self.inner(x))
        return self.fc(x.mean((2, 3)))


class GlueNet(nn.Module):
    """A network with a layer that is called like a grid of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.glue_add = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.glue_add(x))
        return self.fc(x.mean((2, 3)))


class MovesNet(nn.Module):
    """Grids behind data movement: the passes move them before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        y = self.c(self.pool(torch.cat([x, self.b(x)], 1)))
        n, c, h, w = y.shape
        y = y.reshape(n, 2, 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.d(nn.functional.pad(y, (1, 1, 1, 1)))[:, :, 1:-1, 1:-1]
        return self.fc(self.pool(y).flatten(1))


def data() -> tuple[object, object, int]:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 3, 12, 12), np.uint8)
    labelled = (pixels, np.arange(48) % 5)
    return labelled, labelled, 5


def darker() -> tuple[object, object, int]:
    (pixels, labels), _, classes = data()  # type: ignore[misc]
    return (pixels // 3, labels), (pixels // 3, labels), classes


def small() -> tuple[object, object, int]:
    (pixels, labels), _, classes = data()  # type: ignore[misc]
    cropped = (pixels[:, :, :8, :8], labels)
    return cropped, cropped, classes


def train(folder: Path, *more: object) -> Path:
    torch.manual_seed(0)
    torch.save(Net().state_dict(), folder / "w.pt")
    small = ("calibration_images=32", "correction_images=16", "compare_images=8")
    given = [part for setting in small for part in ("--set", setting)]
    done = run_qtool(
        "train", "ptq", "--model", "test_witness:Net", "--data", "test_witness:data",
        "--set", f"weights={folder / 'w.pt'}", *given, "--out", folder / "run", *more,
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("witness"))


DATA = ("--data", "test_witness:data")


def export(run: Path, output: Path, *more: object) -> object:
    return run_qtool("export", run, "--target", "onnx", "-o", output, *DATA, *more)


# Exports


@pytest.mark.parametrize(
    "more", [(), ("--input", "uint8"), ("--format", "qop"), ("--bits", "w4a4,inner=w8a8")]
)
def test_an_export_is_compared_with_the_networks(
    run: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    done = export(run, tmp_path / "m.onnx", *more)
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("witness: ")]
    assert line.startswith("witness: 0 of ") and f"integers differ from run {run}; " in line
    assert " dB, same class for " in line and "lowest " in line
    assert line.endswith("; 4 images of test_witness:data")
    again = export(run, tmp_path / "n.onnx", "--no-witness", *more)
    assert "no witness: nothing is compared with the run's network" in again.err
    assert (tmp_path / "n.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_without_data_a_run_has_images_of_its_own(run: Path, tmp_path: Path) -> None:
    pixels = read_sample(run, (3, 12, 12))
    assert pixels is not None and np.array_equal(pixels, data()[0][0][:8])  # type: ignore[index]
    assert read_sample(run, (3, 12, 13)) is None
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    command = ("export", copied, "--target", "onnx", "-o", tmp_path / "m.onnx", "--force")
    done = run_qtool(*command, "--witness-images", 2)
    assert done.code == 0 and done.err.endswith("; 2 images of test_witness:data\n"), done.err
    (copied / "sample.npy").write_bytes(b"")
    done = run_qtool(*command, "--witness-images", 2)
    assert done.code == 0 and "; 2 random images (--data gives real ones)" in done.err


def test_a_search_hands_the_images_on(run: Path, tmp_path: Path) -> None:
    found = Run.open(run)
    derived = found.derive(tmp_path / "next", found.config, (), resume=False, force=False)
    assert (derived.path("sample.npy")).read_bytes() == (run / "sample.npy").read_bytes()


def test_exporting_the_same_again_needs_no_torch(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export(run, tmp_path / "m.onnx", "--bits", "w6a6")
    monkeypatch.setattr("qtool.witness.witness.find_spec", lambda _: None)
    again = export(run, tmp_path / "m.onnx", "--bits", "w6a6", "--force")
    assert again.code == 0 and again.err == first.err
    # Other bits were not compared yet.
    other = export(run, tmp_path / "m.onnx", "--bits", "w3a6", "--force")
    assert other.code == 0
    assert "no witness: comparing with the run's network needs torch" in other.err
    (run / "witness.json").write_text("{")
    again = export(run, tmp_path / "m.onnx", "--bits", "w6a6", "--force")
    assert again.code == 0 and "no witness" in again.err


def test_float_islands_and_what_lies_behind_them_are_counted_apart(tmp_path: Path) -> None:
    run = train(tmp_path, "--set", "first_last_bits=32")
    done = export(run, tmp_path / "m.onnx", "--allow-float")
    assert done.code == 0, done.err
    assert "witness: " in done.err and " in and behind islands; " in done.err


def dropped(model: nn.Module) -> nn.Module:
    """The network as it is where nobody reads the option of its activation."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = 0.01
    return model


def retrace(run: Path) -> None:
    (run / "adaptive.onnx").unlink(missing_ok=True)
    (run / "witness.json").unlink(missing_ok=True)


@pytest.fixture
def fresh(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that was not traced yet."""
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    retrace(copied)
    return copied


def refuses_and_accepts(run: Path, folder: Path, words: tuple[str, ...]) -> None:
    output = folder / "m.onnx"
    output.write_text("precious")
    done = export(run, output, "--force")
    refused(done, "not what run", *words, "--accept-differences")
    assert output.read_text() == "precious"
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == ["m.onnx"]
    done = export(run, output, "--force", "--accept-differences")
    assert done.code == 0 and "accepted: first at " in done.err, done.err
    onnx.load(output)


def test_an_option_dropped_while_tracing_is_found(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = trace.insert_norms

    def lose(traced: ir.Model, model: nn.Module) -> None:
        insert(traced, model)
        for node in traced.graph:
            if node.op_type == "LeakyRelu":
                node.attributes.pop("alpha")

    monkeypatch.setattr(trace, "insert_norms", lose)
    folder = tmp_path / "out"
    folder.mkdir()
    # The first integers that are others are those behind the activation.
    refuses_and_accepts(fresh, folder, ("first at ", "leaky", "integers differ"))


def test_an_option_dropped_while_capturing_is_found(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare: Callable[..., nn.Module] = networks.prepare

    def lose(model: nn.Module, *args: object, **given: object) -> nn.Module:
        return prepare(dropped(model), *args, **given)

    monkeypatch.setattr(networks, "prepare", lose)
    folder = tmp_path / "out"
    folder.mkdir()
    # Integers and fake-quantized network agree; the user's own layers read something else.
    refuses_and_accepts(fresh, folder, ("first at ", "dB are required"))


def calibrated(folder: Path, network: str) -> Path:
    """A run of a network here, calibrated, which nobody looked at while it was made."""
    images = load_dataset("none", "test_witness:data")
    config = PtqConfig("tiny", f"test_witness:{network}", "test_witness:data")
    run = Run.create(folder, config, images, resume=False, force=False)
    run.save_weights(Stage.FLOAT, networks.build_float(run).state_dict())
    model = networks.build_prepared(run, float_weights=True)
    calibrate(model, torch.from_numpy(to_float(images.train.load(slice(32)))))
    run.save_weights(Stage.MODEL, model.state_dict())
    return folder


def test_a_layer_that_is_lost_to_a_name_of_ours_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Names are taken whether or not the network has them.
    monkeypatch.setattr("qtool.nn.prepare.prepare.fresh", lambda _, name: name, raising=False)
    run, folder = calibrated(tmp_path / "run", "GlueNet"), tmp_path / "out"
    folder.mkdir()
    refuses_and_accepts(run, folder, ("first at ", "made by", "dB are required"))


def test_every_quantizer_has_an_integer_tensor(tmp_path: Path) -> None:
    run = Run.open(calibrated(tmp_path / "run", "MovesNet"))
    dialect = integer_model(RunSource(run), None)
    found = [q for q in quantizers(networks.load_adaptive(run)) if q.role != "weight"]
    assert {(q.role, q.name) for q in found} <= {*twins_of(dialect)} and len(found) == 7
    record = RunLook(run, None, "qdq", Asked(), print)(dialect)
    assert record is not None and record.fallen == () and record.integers.mismatched == 0
    by_name = {t.tensor: t for t in record.tensors}
    last = by_name["d/slice/slice/maxpool/flatten"]
    assert last.inputs == ("c/reshape/transpose/reshape/pad",)
    assert last.operators[0] == "d" and last.codes == Differing(0, 4 * 72)


def test_a_wrong_bias_is_found_in_the_integers(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from passes.lower import layer_operators

    read = layer_operators.read_layer

    def wrong(node: ir.Node, fallback: str) -> object:
        layer = read(node, fallback)
        return copy.copy(layer) if layer.name != "inner" else shifted(layer)

    def shifted(layer: object) -> object:
        import dataclasses

        return dataclasses.replace(layer, bias=layer.bias + 1)  # type: ignore[attr-defined, type-var]

    monkeypatch.setattr(layer_operators, "read_layer", wrong)
    folder = tmp_path / "out"
    folder.mkdir()
    refuses_and_accepts(fresh, folder, ("first at inner", "integers differ"))


# Imports

AXIS = """<ir_version: 10, opset_import: ["" : 21]>
m (float[1, 4, 8, 8] i) => (float[1, 4, 8, 8] y)
<float s = {0.02}, float t = {0.1}, uint8 z = {128},
 float[4] ws = {0.001, 0.002, 0.004, 0.008}, int8[4] wz = {0, 0, 0, 0},
 float[4] b = {0.5, -0.5, 1, 0}>
{
    xq = QuantizeLinear (i, s, z)
    x = DequantizeLinear (xq, s, z)
    wf = DequantizeLinear <axis = 1> (w, ws, wz)
    c = Conv <pads = [1, 1, 1, 1]> (x, wf, b)
    yq = QuantizeLinear (c, t, z)
    y = DequantizeLinear (yq, t, z)
}"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    codes = np.random.default_rng(0).integers(-60, 61, (4, 4, 3, 3)).astype(np.int8)
    onnx.save(foreign_files.parse(AXIS, w=codes), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


@pytest.fixture
def unread_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales are along the outputs, whatever the file says."""
    monkeypatch.setattr(layers, "_axis", lambda *_: 0, raising=False)


@pytest.mark.usefixtures("unread_axis")
def test_an_axis_that_nobody_reads_is_found(foreign: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    command = ("import", foreign, "-o", output)
    refused(run_qtool(*command), f"not what {foreign} computes", "first at c: ", "20 dB are")
    assert not output.exists()
    done = run_qtool(*command, "--accept-differences")
    assert done.code == 0 and "accepted: first at c: " in done.err
    check = ("check", output, "--original", foreign)
    shown = run_qtool(*check)
    assert shown.code == 0 and "original differs" in shown.out, shown.err
    missed = run_qtool(*check, "--require-original")
    assert (
        missed.code == 1 and f"missed: not what {foreign} computes: first at c" in missed.err
    )


@pytest.mark.usefixtures("unread_axis")
def test_without_a_witness_it_is_said(foreign: Path, tmp_path: Path) -> None:
    done = run_qtool("import", foreign, "-o", tmp_path / "out.onnx", "--no-witness")
    assert done.code == 0 and f"no witness: nothing is compared with {foreign}" in done.err


FOREIGN = {
    "nncf": foreign_files.nncf, "aimet": foreign_files.aimet,
    "brevitas": lambda: foreign_files.brevitas(4),
}  # fmt: skip


@pytest.mark.parametrize("tool", FOREIGN)
def test_right_imports_pass(tool: str, tmp_path: Path) -> None:
    onnx.save(FOREIGN[tool](), tmp_path / "in.onnx")
    record = looked(tmp_path / "in.onnx")
    assert record.fallen == () and record.same_class == 100
    assert record.integers.mismatched <= record.integers.compared // 100
    assert record.lowest_db is not None and record.lowest_db > 35
    # The input, the layers' results, and the output.
    assert len(record.tensors) >= 4 and record.tensors[-1].tensor == "output"


def looked(path: Path) -> WitnessRecord:
    dialect, _ = read_foreign(path)
    record = FileLook(path, "qdq", Asked(images=8), print)(dialect)
    assert record is not None
    return record


def test_an_import_is_compared_on_images(tmp_path: Path) -> None:
    onnx.save(foreign_files.nncf(), tmp_path / "in.onnx")
    command = ("import", tmp_path / "in.onnx", "-o", tmp_path / "m.onnx", "--data")
    refused(
        run_qtool(*command, "test_witness:data"),
        "images are (3, 12, 12), the model takes (3, 8, 8)",
    )
    assert not (tmp_path / "m.onnx").exists()
    done = run_qtool(*command, "test_witness:small")
    assert done.code == 0 and "; 4 images of test_witness:small\n" in done.err, done.err


def test_a_softmax_that_is_left_out_is_left_out_of_the_comparison(tmp_path: Path) -> None:
    model = foreign_files.nncf()
    model.graph.node[-1].output[0] = "logits_"
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits_"], ["logits"]))
    onnx.save(model, tmp_path / "in.onnx")
    assert looked(tmp_path / "in.onnx").fallen == ()


def test_a_softmax_of_quantized_logits_too(tmp_path: Path) -> None:
    body = "f = Flatten (x)\n wf = DequantizeLinear <axis = 1> (k, ws)\n c = MatMul (f, wf)"
    model = foreign_check.small(body, "1, 4", k=foreign_files.codes(1, 256, 4, top=20))
    model.graph.node[-1].output[0] = "logits"
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["y"]))
    onnx.save(model, tmp_path / "in.onnx")
    record = looked(tmp_path / "in.onnx")
    assert record.fallen == () and record.lowest_db is not None and record.lowest_db > 37


def test_kept_comparisons_are_of_the_same_images(run: Path, tmp_path: Path) -> None:
    lines = []
    for name in ("data", "darker"):
        done = run_qtool(
            "export", run, "--target", "onnx", "-o", tmp_path / f"{name}.onnx", "--bits",
            "w8a4", "--data", f"test_witness:{name}",
        )  # fmt: skip
        assert done.code == 0, done.err
        lines.append(done.err.replace(name, ""))
    assert "output" in lines[0] and lines[0] != lines[1]


def test_an_original_that_cannot_run_is_said(tmp_path: Path) -> None:
    model, path, notes = foreign_files.nncf(), tmp_path / "in.onnx", list[str]()
    onnx.save(model, path)
    dialect, _ = read_foreign(path)
    model.graph.node[0].domain = "nowhere"
    onnx.save(model, path)
    assert FileLook(path, "qdq", Asked(), notes.append)(dialect) is None
    assert notes[0].startswith(f"no witness: {path}: ONNX Runtime cannot run it: ")


# Checks


def test_check_compares_with_a_run(run: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "m.onnx", tmp_path / "check.json"
    assert export(run, output, "--input", "uint8").code == 0
    check = ("check", output, "--original", run, *DATA, "--runtime", "reference,ort")
    done = run_qtool(*check, "--json", report, "--require-original", "--min-snr", 10)
    assert done.code == 0, done.err
    content = json.loads(report.read_text())
    original = content["original"]
    assert original["integers"]["mismatched"] == 0 < original["integers"]["compared"]
    assert original["images"] == 8 and original["fallen"] == []
    assert {t["tensor"] for t in original["tensors"]} >= {"stem", "inner", "fc", "output"}
    assert set(content["latency_ms"]) == {"ort", "fp32 ort"}
    assert content["fp32_file_bytes"] > 0 and "latency fp32 ort" in done.out
    missed = run_qtool(*check, "--min-snr", 150)
    assert missed.code == 1 and "below the required 150 dB" in missed.err


def test_a_float_network_that_is_there_is_not_exported_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, whole = tmp_path / "m.onnx", tmp_path / "fp32.onnx"
    assert export(run, output).code == 0
    export_float(run, whole)
    monkeypatch.setattr("qtool.checking.speed.export_float", None)
    (record,) = check(
        [output], "test_witness:data", ["ort"], None, Silent(), original=run, float_file=whole
    )
    assert record.fp32_file_bytes == whole.stat().st_size
    assert record.latency_ms["fp32 ort"].runs > 0 and record.original is not None
    assert CheckRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_check_refuses_an_original_that_is_none(
    run: Path, foreign: Path, tmp_path: Path
) -> None:
    output = tmp_path / "m.onnx"
    assert export(run, output).code == 0
    check = ("check", output, *DATA, "--runtime", "ort")
    refused(run_qtool(*check, "--original", tmp_path / "absent"), "no such run directory")
    missed = run_qtool(*check, "--require-original")
    assert missed.code == 1 and "nothing to compare with: give --original" in missed.err


# Slow is said


def timed(median: float) -> Latency:
    return Latency(median, (0.95 * median, 1.05 * median), 1, 100)


def test_integers_slower_than_floats_are_said() -> None:
    reason = why_slow((8, 20), {})
    times = {"ort": timed(1.64), "tvm": timed(0.4), "fp32 ort": timed(0.53)}
    assert slow(times, {"ort": reason, "tvm": None}) == (
        "ort takes 3.09 x the time of fp32 ort: 8 of its 20 operators are tables (Cast -> "
        "Gather) of activations such as SiLU; tvm is faster",
    )
    (text,) = slow({"ort": timed(1.0), "fp32 ort": timed(0.5)}, {"ort": None}) or ()
    assert text == "ort takes 2.00 x the time of fp32 ort; try qtool export --target tvm"
    assert slow({"ort": timed(0.4), "fp32 ort": timed(0.53)}, {}) is None
    assert slow({"ort": timed(0.54), "fp32 ort": timed(0.53)}, {}) is None  # scatter
    assert slow({"ort": timed(9)}, {}) is None
    assert why_slow((0, 9), {"Softmax": 2}) == "2 operators compute in floating point"
    assert why_slow(None, {}) is None


def test_check_says_what_is_slow(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(foreign_files.nncf(), foreign)
    assert run_qtool("import", foreign, "-o", tmp_path / "m.onnx").code == 0

    def measure(path: Path, *_: object, **__: object) -> Latency:
        return timed(1.0 if path == foreign else 3.0)

    monkeypatch.setattr("qtool.checking.speed.measure", measure)
    done = run_qtool("check", tmp_path / "m.onnx", "--original", foreign)
    assert done.code == 0, done.err
    assert "ort takes 3.00 x the time of original ort" in " ".join(done.out.split())


# Figures


def test_ratios() -> None:
    x = np.full(100, 2.0, np.float32)
    assert snr_db(x, x, 0.1) == SAME_DB and largest_steps(x, x, 0.1) == 0
    assert snr_db(x, x * np.float32(1.1), 0.1) == pytest.approx(20, abs=1e-3)
    assert largest_steps(x, x + np.float32(0.5), 0.25) == 2
    zero = np.zeros(100, np.float32)
    one = zero.copy()
    one[0] = 0.1
    # A signal of zeros counts as one step: a step in a hundred is 20 dB.
    assert snr_db(zero, one, 0.1) == pytest.approx(20, abs=1e-3)
    assert snr_db(zero, one, 0) == LOWEST_DB
    assert snr_db(np.full(4, np.nan, np.float32), x[:4], 1) == LOWEST_DB
    assert snr_db(np.full(4, np.inf, np.float32), x[:4], 1) == LOWEST_DB
    assert snr_db(x, x[:4], 1) == LOWEST_DB and largest_steps(x, x[:4], 1) > 1e6
    assert math.isfinite(largest_steps(x, x * np.float32(np.inf), 1))


def test_differing_integers_are_those_of_the_values() -> None:
    grid, codes = Grid(np.float32(0.1), 10), np.array([0, 10, 12, 255], np.uint8)
    values = (codes.astype(np.float32) - 10) * np.float32(0.1)
    assert differing(values, codes, grid) == Differing(0, 4)
    assert differing(values + np.float32(0.1), codes, grid) == Differing(4, 4)
    assert differing(values[:3], codes, grid) == Differing(4, 4)
    assert differing(np.full(4, np.nan, np.float32), codes, grid) == Differing(4, 4)


def test_a_record_without_floats_says_its_integers() -> None:
    record = WitnessRecord(
        "run r", "4 images", 4, Differing(1, 9), Differing(2, 5), None, None, None, None, None,
        (), (),
    )  # fmt: skip
    assert sentence(record) == (
        "1 of 9 integers differ from run r; 2 of 5 in and behind islands; 4 images"
    )
