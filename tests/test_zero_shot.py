"""Bit-widths between trained ones: the rule, the network, deployed files, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Result, export_without_torch, run_qtool
from PIL import Image
from test_cli_errors import refused
from test_mebqat import network
from tiny_training import tiny_data
from torch import nn

from passes.emit.onnx.target import OnnxTarget
from qtool.checking.check import check
from qtool.checking.meter import Meter
from qtool.core.errors import UserError
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits, Selection, parse_uniform
from qtool.core.zero_shot import Between, PairBetween, place_of
from qtool.data.batches import to_batch
from qtool.data.images import DataSet, Images
from qtool.networks import load_adaptive, load_prepared
from qtool.nn.control import calibrate, quant_layers, select
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.nn.widen import fill, with_widths
from qtool.report.table import rows as table_rows
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.mebqat import MebqatConfig
from qtool.training.evaluation import recalibrate_norms
from qtool.training.frontend import load_frontend
from qtool.training.ingredients import make_batches

DATA = "tiny_training:tiny_data"
SETTINGS = (
    "model=test_zero_shot:net", "batch_size=8", "norm_batches=2", "calibration_images=16",
    "float_epochs=1", "epochs=1", "weight_bits=8,4,2,32", "activation_bits=8,4,2,32",
)  # fmt: skip
FIVE = Between(4, 8, 5)


def net(in_channels: int = 1, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return network(in_channels, classes)


# --- the rule ---


def test_a_width_lies_between_the_nearest_trained_ones() -> None:
    found = place_of((8, 6, 4, 2, 32), (32, 2, 8), LayerBits(5, 3))
    assert found == PairBetween(Between(4, 6, 5), Between(2, 8, 3)) and not found.is_trained
    assert found.ends() is None
    assert found.weight.mix(1.0, 3.0) == 2.0 and found.activation.mix(0.0, 6.0) == 1.0
    one = place_of((8, 4), (8, 4), LayerBits(4, 5))
    assert one == PairBetween(Between(4, 4, 4), FIVE) and not one.is_trained
    line = place_of((8, 4), (8, 4), LayerBits(5, 5))
    assert line.ends() == (LayerBits(4, 4), LayerBits(8, 8))


def test_what_was_trained_is_itself() -> None:
    for bits in (LayerBits(8, 4), LayerBits(32, 32), LayerBits(16, 4)):
        assert place_of((8, 4), (8, 4), bits).ends() == (bits, bits)


@pytest.mark.parametrize(("bits", "message"), [
    ("w3a8", r"w3a8: 3-bit weights were not trained, and .* that were \(1, 4, 8, FP\)"),
    ("w8a2", "w8a2: 2-bit inputs were not trained"),
    ("w2a8", "w2a8: 2-bit weights"),  # 1 bit is no neighbour
])  # fmt: skip
def test_outside_of_what_was_trained_is_refused(bits: str, message: str) -> None:
    asked = parse_uniform(bits)
    assert asked is not None
    with pytest.raises(UserError, match=message):
        place_of((8, 4, 1, 32), (8, 4), asked)


# --- the network ---


def prepared(spec: QuantSpec) -> nn.Module:
    model = prepare(net(), spec)
    calibrate(model, to_batch(tiny_data().train, slice(0, 16))[0])
    return model


def widened(quantizer: str, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """Return a network of 8 and 4 bits, and the same one with 5 bits."""
    spec = QuantSpec((8, 4), (8, 4), quantizer=quantizer, **settings)
    model = prepared(spec)
    wider = prepare(net(), with_widths(spec, {5: FIVE}, {5: FIVE}))
    fill(wider, model, {5: FIVE}, {5: FIVE})
    return model, wider


def spread(quantizer: Quantizer, bits: int) -> torch.Tensor:
    """Return the range of a grid: its largest value minus its smallest."""
    return quantizer.scale(bits) * sum(quantizer.limits(bits))


def pairs_of_quantizers(model: nn.Module, wider: nn.Module) -> list[tuple[Any, Any]]:
    layers = list(zip(quant_layers(model), quant_layers(wider), strict=True))[1:-1]
    inputs = [(a.input_quant, b.input_quant) for a, b in layers]
    return inputs + [(a.weight_quant, b.weight_quant) for a, b in layers]


@pytest.mark.parametrize("quantizer", ["lsq", "lsq_plus", "pact"])
def test_ranges_between_learned_ones_are_linear(quantizer: str) -> None:
    model, wider = widened(quantizer)
    for trained, new in pairs_of_quantizers(model, wider):
        assert new.bits == (8, 4, 5)
        for bits in (8, 4):
            assert new.scale(bits).equal(trained.scale(bits))
        if new.learned == "alpha":
            expected = 0.75 * trained.alpha[1] + 0.25 * trained.alpha[0]
            assert torch.allclose(new.alpha[2], expected)
        else:
            expected = 0.75 * spread(trained, 4) + 0.25 * spread(trained, 8)
            assert torch.allclose(spread(new, 5), expected)


def test_trained_bits_compute_what_they_computed() -> None:
    model, wider = widened("lsq")
    x = to_batch(tiny_data().test, slice(None))[0]
    for bits in (8, 4):
        answers = []
        for each in (model, wider):
            select(each.eval(), Selection(default=LayerBits(bits, bits)))
            with torch.no_grad():
                answers.append(each(x))
        assert answers[0].equal(answers[1])


@pytest.mark.parametrize("quantizer", ["lsq", "sat", "double_rounding"])
def test_what_widths_share_stays(quantizer: str) -> None:
    model, wider = widened(quantizer, shared=True)
    for (_, a), (_, b) in zip(model.named_parameters(), wider.named_parameters(), strict=True):
        assert a.equal(b)
    select(wider.eval(), Selection(default=LayerBits(5, 5)))


def test_fixed_grids_have_their_own_step() -> None:
    for trained, new in pairs_of_quantizers(*widened("dorefa"))[:1]:
        assert new.scale(5) == torch.tensor(1 / 31) and trained.bits == (8, 4)


def test_zero_points_have_the_same_share_of_the_range() -> None:
    quantizers = []
    for bits in ((8, 4), (8, 4, 5)):
        holder = nn.Module()
        holder.input = FakeQuantizer("x", "activation", bits, signed=True, asymmetric=True)
        quantizers.append(holder)
    trained, wider = quantizers
    trained.input.set_zero_points((51, 6))
    fill(wider, trained, {}, {5: FIVE})
    # 0.75 * 6 / 15 + 0.25 * 51 / 255 = 0.35 of 31 codes.
    assert wider.input.zero_points == (51, 6, 11)
    trained.input.set_zero_points((128, 128))
    fill(wider, trained, {}, {5: FIVE})
    assert wider.input.zero_points == (128, 128, 128)


# --- runs ---


def train(folder: Path, *settings: str) -> Path:
    words = (word for each in (*SETTINGS, *settings) for word in ("--set", each))
    done = run_qtool("train", "mebqat", "--data", DATA, "--out", folder, *words)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("zero") / "run", "shared_steps=false")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def export(run: Path, bits: str, output: Path, *more: object) -> Result:
    target = "tvm" if output.suffix == ".so" else "onnx"
    return run_qtool("export", run, "--target", target, "--bits", bits, "-o", output, *more)


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


TOLD = "w5a3 was never trained: weights between 4 and 8 bits, inputs between 2 and 4 bits"


@pytest.mark.parametrize("shared", [
    "false", pytest.param("true", marks=pytest.mark.nightly),
])  # fmt: skip
def test_a_pair_between_trained_ones_is_exported(
    trained: Path, tmp_path: Path, shared: str
) -> None:
    run = tmp_path / "run"
    if shared == "true":
        train(run, "shared_steps=true")
    else:
        shutil.copytree(trained, run)
    files = [tmp_path / "m.onnx", tmp_path / "m.so"]
    done = export(run, "w5a3", files[0], "--calibration", DATA)
    assert done.code == 0, done.err
    told = f"{TOLD}, BatchNorm of 16 images of {DATA}"
    assert told in done.err and "witness: 0 of " in done.err
    again = export(run, "w5a3", files[1])
    assert again.code == 0 and told in again.err, again.err
    (record,) = check(files, DATA, ["reference", "ort", "tvm"], run, Silent())
    assert all(parity.mismatched == 0 for parity in record.parity.values())
    assert record.layers["one.0"] == (5, 3) and record.layers["first.0"] == (8, 8)
    assert record.accuracy["fake_quant"] == record.accuracy["reference"]
    assert record.zero_shot == metadata(files[0])["qtool.zero_shot"] == told
    assert ("zero-shot", told) in list(table_rows(record))
    facts = json.loads((tmp_path / "m.json").read_text())
    assert facts["zero_shot"] == told


def test_a_run_keeps_what_exports_need_again(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.iterdir()}
    plain = {bits: tmp_path / f"{bits}.onnx" for bits in ("w4a4", "w8a2")}
    for bits, path in plain.items():
        assert export(run, bits, path).code == 0
    first = tmp_path / "first.onnx"
    assert export(run, "w5a3", first, "--calibration", DATA).code == 0
    again = {bits: tmp_path / f"{bits}-again.onnx" for bits in (*plain, "w5a3")}
    export_without_torch(run, again)
    for bits, path in {**plain, "w5a3": first}.items():
        assert again[bits].read_bytes() == path.read_bytes(), bits
    assert "qtool.zero_shot" not in metadata(again["w4a4"])
    kept = {path.name for path in run.iterdir()} - {path.name for path in before}
    assert kept == {"adaptive.onnx", "witness.json", "zero_shot.safetensors"}
    assert all(path.read_bytes() == content for path, content in before.items())
    pairs = export(run, "w8a8,w5a3,w4a4", tmp_path / "pairs")
    assert pairs.code == 0 and TOLD in pairs.err, pairs.err


def test_statistics_are_those_of_the_network_at_the_pair(run: Path, tmp_path: Path) -> None:
    assert export(run, "w5a5", tmp_path / "m.onnx", "--calibration", DATA).code == 0
    opened, five = Run.open(run), LayerBits(5, 5)
    config = opened.settings(MebqatConfig)
    model = load_prepared(opened, [five])
    select(model, Selection(default=five))
    recalibrate_norms(model, make_batches(config, tiny_data()), config.norm_batches)
    state, kept = model.state_dict(), opened.load_weights(Stage.ZERO_SHOT)
    names = {name.partition("/")[2] for name in opened.load_weights(Stage.NORMS)}
    assert set(kept) == {f"w5a5/{name}" for name in names} and names
    assert all(kept[f"w5a5/{name}"].equal(state[name]) for name in names)


def with_own_factors(run: Path) -> None:
    """Give BatchNorms a weight and a bias of their own at w4a4 and w2a2."""
    opened = Run.open(run)
    rows, state = opened.load_weights(Stage.NORMS), opened.load_weights(Stage.MODEL)
    for key, factor in (("w4a4", 2.0), ("w2a2", 3.0)):
        for name in [name for name in rows if name.startswith(f"{key}/")]:
            for part in ("weight", "bias"):
                other = name.partition("/")[2].rpartition(".")[0] + f".{part}"
                rows[f"{key}/{other}"] = state[other] * factor + 0.5
    opened.save_weights(Stage.NORMS, rows)


def test_weights_of_batchnorm_are_interpolated_where_pairs_have_their_own(
    run: Path, tmp_path: Path
) -> None:
    with_own_factors(run)
    path = tmp_path / "m.onnx"
    for bits in ("w5a5", "w3a3"):
        done = export(run, bits, path, "--calibration", DATA, "--force")
        assert done.code == 0 and "witness: 0 of " in done.err, done.err
    opened = Run.open(run)
    rows, kept = opened.load_weights(Stage.NORMS), opened.load_weights(Stage.ZERO_SHOT)
    state = opened.load_weights(Stage.MODEL)
    names = [n.partition("/")[2] for n in rows if n.startswith("w4a4/") and "running" not in n]
    assert names and {name.rpartition(".")[2] for name in names} == {"weight", "bias"}
    for name in names:
        four, two = rows[f"w4a4/{name}"], rows[f"w2a2/{name}"]
        assert torch.allclose(kept[f"w5a5/{name}"], 0.75 * four + 0.25 * state[name])
        assert torch.allclose(kept[f"w3a3/{name}"], (four + two) / 2)
    refused(
        export(run, "w5a3", path, "--calibration", DATA, "--force"),
        "w5a3: run", "has BatchNorm weights of its own for", "w2a2", "a pair on the line",
    )  # fmt: skip
    # At a trained pair they are that pair's, when statistics are taken anew.
    assert export(run, "w4a4", path, "--calibration", DATA, "--force").code == 0
    after = opened.load_weights(Stage.NORMS)
    assert all(after[f"w4a4/{name}"].equal(rows[f"w4a4/{name}"]) for name in names)


@pytest.mark.parametrize(("bits", "more", "words"), [
    ("w5a3", (), ("w5a3 was not trained", "between those of 4 and 8 bits", "--calibration")),
    ("w4a4,w6a6", (), ("w6a6 was not trained", "statistics", "--calibration DIR")),
    ("w1a4", ("--calibration", DATA), ("1-bit weights were not trained", "2, 4, 8, FP")),
    ("w4a1", (), ("1-bit inputs were not trained", "nothing to interpolate")),
    ("all", ("--calibration", DATA), ("statistics are of one pair", "not of all")),
    ("one.0=w5a5", ("--calibration", DATA), ("statistics are of one pair",)),
    ("w5a5,one.0=w4a4", (), ("layer", "bits 5 were not trained")),
])  # fmt: skip
def test_refused_exports_leave_the_run_as_it_was(
    run: Path, tmp_path: Path, bits: str, more: tuple[object, ...], words: tuple[str, ...]
) -> None:
    before = {
        path: path.read_bytes() for path in run.iterdir() if path.name != "adaptive.onnx"
    }
    output = tmp_path / ("files" if "," in bits or bits == "all" else "m.onnx")
    refused(export(run, bits, output, *more), *words)
    assert not output.exists() and not (run / "zero_shot.safetensors").exists()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_export_that_fails_takes_the_pair_back(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "m.onnx"
    assert export(run, "w6a6", path, "--calibration", DATA).code == 0
    before = (run / "zero_shot.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(OnnxTarget, "write", stopping)
        done = export(run, "w5a5", path, "--calibration", DATA, "--force")
    assert done.code == 130 and "w5a5 was never trained" in done.err, done.err
    assert (run / "zero_shot.safetensors").read_bytes() == before
    assert export(run, "w6a6", path, "--force").code == 0


def test_a_damaged_file_is_one_line(run: Path, tmp_path: Path) -> None:
    path = run / "zero_shot.safetensors"
    path.write_bytes(b"no tensors")
    refused(export(run, "w5a5", tmp_path / "m.onnx"), "zero_shot.safetensors", "damaged")
    Run.open(run).save_weights(Stage.ZERO_SHOT, {}, pairs=[{"bits": [5]}])
    refused(export(run, "w5a5", tmp_path / "m.onnx"), "zero_shot.safetensors is damaged")


def test_a_search_starts_from_what_was_trained(run: Path, tmp_path: Path) -> None:
    assert export(run, "w5a3", tmp_path / "m.onnx", "--calibration", DATA).code == 0
    opened = Run.open(run)
    network = load_frontend("mebqat").search_start(opened).network
    for model, weights in (
        (network(opened.settings(MebqatConfig)), (8, 4, 2)),
        (load_adaptive(opened), (8, 4, 2, 5)),
    ):
        assert quant_layers(model)[1].weight_quant.bits == weights


def test_pictures_without_labels_will_do(run: Path, tmp_path: Path) -> None:
    folder, images = tmp_path / "mine", tiny_data().train
    folder.mkdir()
    for row, pixels in enumerate(images.load(slice(None))):
        Image.fromarray(pixels[0]).save(folder / f"{row:03}.png")
    (folder / "notes.txt").touch()
    files = [tmp_path / "pictures.onnx", tmp_path / "images.onnx"]
    done = export(run, "w5a5", files[0], "--calibration", folder)
    assert done.code == 0, done.err
    told = metadata(files[0])["qtool.zero_shot"]
    assert told.endswith(f"BatchNorm of 16 images of pictures in {folder}")
    # The same pixels, so the same network.
    kept = Run.open(run).load_weights(Stage.ZERO_SHOT)
    assert export(run, "w5a5", files[1], "--calibration", DATA).code == 0
    again = Run.open(run).load_weights(Stage.ZERO_SHOT)
    assert all(again[name].equal(tensor) for name, tensor in kept.items())
    for path in folder.glob("*.png"):
        path.write_bytes(b"no picture")
    before = (run / "zero_shot.safetensors").read_bytes()
    damaged = export(run, "w6a6", tmp_path / "m.onnx", "--calibration", folder)
    assert damaged.code == 2 and ".png is damaged" in damaged.err, damaged.err
    assert (run / "zero_shot.safetensors").read_bytes() == before


# --- joint training ---


@pytest.mark.parametrize("method", [
    "coquant", *(pytest.param(name, marks=pytest.mark.nightly) for name in (
        "vanilla", "double_rounding", "adabits", "switchable",
    )),
])  # fmt: skip
def test_jointly_trained_runs_have_precisions_between_their_own(
    tmp_path: Path, method: str
) -> None:
    run, path = tmp_path / "run", tmp_path / "m.onnx"
    settings = (*SETTINGS[:-2], "activation_bits=8,4,2", f"method={method}")
    words = (word for each in settings for word in ("--set", each))
    done = run_qtool("train", "coquant", "--data", DATA, "--out", run, *words)
    assert done.code == 0, done.err
    before = {bits: tmp_path / f"{bits}.onnx" for bits in ("w8a8", "w2a2")}
    for bits, file in before.items():
        assert export(run, bits, file).code == 0
    for bits in ("w5a5", "w3a3"):
        done = export(run, bits, path, "--calibration", DATA, "--force")
        assert done.code == 0 and "witness: 0 of " in done.err, done.err
        (record,) = check([path], DATA, ["reference", "ort"], run, Silent())
        assert record.parity["ort"].mismatched == 0 and bits in str(record.zero_shot)
        assert record.accuracy["fake_quant"] == record.accuracy["reference"]
    for bits, file in before.items():  # trained precisions stay what they are
        assert export(run, bits, path, "--force").code == 0
        assert path.read_bytes() == file.read_bytes()
    # Layers may have different ones, trained or not: each takes the row of its own bits.
    mixed = export(run, "w5a5,one.0=w8a8", path, "--force")
    assert mixed.code == 0 and "witness: 0 of " in mixed.err, mixed.err
    assert metadata(path)["qtool.zero_shot"].startswith("w5a5 was never trained")
    off_the_line = export(run, "w7a5", path, "--calibration", DATA, "--force")
    if method == "vanilla":  # whose BatchNorms have one weight for all
        assert off_the_line.code == 0, off_the_line.err
    else:
        refused(off_the_line, "w7a5: run", "has BatchNorm weights of its own for w2a2, w4a4")


# --- eval ---


def evaluate(run: Path, bits: str, *more: object) -> Result:
    return run_qtool("eval", run, "--bits", bits, "--data", DATA, *more)


def content(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "eval.json").read_text())["pairs"]
    return found


def other_data() -> DataSet:
    """The tiny images in negative."""
    data = tiny_data()
    pixels = 255 - data.train.load(slice(None))
    return DataSet(data.name, Images(pixels, data.train.labels), data.test, data.classes)


def test_eval_measures_pairs_between_trained_ones(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(evaluate(run, "w5a5"), "w5a5 was not trained", "--calibration DIR")
    refused(evaluate(run, "all", "--calibration", DATA), "statistics are of one pair")
    assert evaluate(run, "w4a4").code == 0
    measured: list[LayerBits] = []
    measure = Meter.measure

    def counted(meter: Meter, bits: LayerBits) -> Any:
        measured.append(bits)
        return measure(meter, bits)

    monkeypatch.setattr(Meter, "measure", counted)
    done = evaluate(run, "w4a4,w5a5,w3a3", "--calibration", DATA)
    assert done.code == 0, done.err
    # What is known of trained pairs stays.
    assert measured == [LayerBits(5, 5), LayerBits(3, 3)]
    told = "weights between 4 and 8 bits, inputs between 4 and 8 bits, BatchNorm of 16 images"
    assert f"° w5a5 was never trained: {told}" in " ".join(done.out.split())
    assert content(run)["w5a5"]["zero_shot"]["weights"] == [4, 8]
    assert "zero_shot" not in content(run)["w4a4"]
    assert evaluate(run, "w5a5,w4a4").code == 0 and len(measured) == 2
    # From other images: another network at this pair, and at this pair alone.
    monkeypatch.setattr("tiny_training.tiny_data", other_data)
    assert evaluate(run, "w5a5,w3a3", "--calibration", DATA).code == 0
    assert len(measured) == 4
    assert list(content(run)) == ["w3a3", "w4a4", "w5a5"]
    assert evaluate(run, "all").code == 0
    assert LayerBits(5, 5) not in measured[4:]


def test_eval_finds_what_the_exported_file_reaches(run: Path, tmp_path: Path) -> None:
    assert evaluate(run, "w5a3", "--calibration", DATA).code == 0
    path = tmp_path / "m.onnx"
    assert export(run, "w5a3", path).code == 0
    (record,) = check([path], DATA, ["ort"], None, Silent())
    assert content(run)["w5a3"]["accuracy"] == record.accuracy["ort"]
    model = load_adaptive(Run.open(run))
    assert {q.bits for q in model.modules() if isinstance(q, FakeQuantizer)} >= {(8, 4, 2, 3)}
    assert np.isfinite(record.accuracy["ort"])
