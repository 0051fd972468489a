"""`qtool eval`: accuracy at pairs of bit-widths, kept, continued, and what it saves."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, run_qtool
from test_cli_errors import refused
from tiny_training import BASE, CLASSES, STEPS, tiny_config, tiny_data

from qtool.checking.check import check
from qtool.checking.grid import pairs_of
from qtool.checking.grid_record import read_grid
from qtool.checking.meter import Meter
from qtool.checking.savings import adaptive_bytes, dedicated_bytes
from qtool.core.pairs import pair_name
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits, Selection
from qtool.data.batches import to_batch
from qtool.data.images import DataSet, Images
from qtool.frontends.mebqat import frontend as mebqat
from qtool.frontends.metamix import frontend as metamix
from qtool.networks import load_adaptive
from qtool.nn.control import select
from qtool.nn.norm_rows import active_norms
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.mebqat import MebqatConfig
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.override import override
from qtool.training.evaluation import accuracy
from qtool.training.transductive import transductive_accuracy

DATA = "tiny_training:tiny_data"
PAIRS = ["w4a4", "w4a8", "w8a4", "w8a8"]


def train_metamix(folder: Path, **settings: Any) -> Path:
    config = replace(
        tiny_config("meta_epochs=1", "float_epochs=1"), model="tiny_training:plain_net",
        dataset=DATA, activation_bits=(8, 4), weight_bits=(8, 4), **settings,
    )  # fmt: skip
    run = Run.create(folder, config, tiny_data(), False, False)
    metamix.train(run, tiny_data(), Silent(), False)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of four pairs."""
    return train_metamix(tmp_path_factory.mktemp("eval") / "run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def evaluate(*args: object) -> Result:
    return run_qtool("eval", *args, "--data", DATA)


def content(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "eval.json").read_text())
    return found


def test_every_pair_is_what_its_exported_file_reaches(run: Path, tmp_path: Path) -> None:
    done = evaluate(run, "--bits", "all")
    assert done.code == 0, done.err
    found = content(run)
    assert list(found["pairs"]) == PAIRS
    assert found["question"]["images"] == 16 and found["question"]["runtime"] == "ort"
    for name, pair in found["pairs"].items():
        path = tmp_path / f"{name}.onnx"
        exported = run_qtool("export", run, "--target", "onnx", "--bits", name, "-o", path)
        assert exported.code == 0, exported.err
        (record,) = check([path], DATA, ["ort"], None, Silent())
        assert (pair["accuracy"], pair["bops"]) == (record.accuracy["ort"], record.bops)
        assert (pair["where"], pair_name(LayerBits(*pair["bits"]))) == ("ort", name)
        assert "reason" not in pair and f"{pair['accuracy']:.2f} " in done.out
    assert (run / "eval.png").read_bytes().startswith(b"\x89PNG")
    assert f"top-1 accuracy in percent, 16 images of {DATA} in ort" in done.out


@pytest.mark.parametrize("runtime", ["reference", "tvm", "torch"])
def test_other_runtimes_find_the_same(trained: Path, run: Path, runtime: str) -> None:
    assert evaluate(run, "--runtime", runtime).code == 0
    mine = {name: pair["accuracy"] for name, pair in content(run)["pairs"].items()}
    meter = Meter(Run.open(trained), tiny_data(), "ort")
    pairs = pairs_of(Run.open(trained))
    assert mine == {pair_name(bits): meter.measure(bits).accuracy for bits in pairs}
    assert {pair["where"] for pair in content(run)["pairs"].values()} == {runtime}


class Counting:
    """Counts what is measured; the user interrupts before `stop` is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: str = "") -> None:
        self.names: list[str] = []
        measure = Meter.measure

        def counted(meter: Meter, bits: LayerBits) -> Any:
            if pair_name(bits) == stop:
                raise KeyboardInterrupt
            self.names.append(pair_name(bits))
            return measure(meter, bits)

        monkeypatch.setattr(Meter, "measure", counted)


def test_an_interrupted_evaluation_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        first = Counting(patch, stop="w4a8")
        done = evaluate(run)
    assert (done.code, first.names) == (130, ["w8a8", "w8a4"])
    assert "eval when it is repeated" in done.err
    assert list(content(run)["pairs"]) == ["w8a4", "w8a8"]
    rest = Counting(monkeypatch)
    assert evaluate(run).code == 0
    assert rest.names == ["w4a8", "w4a4"] and list(content(run)["pairs"]) == PAIRS
    assert evaluate(run, "--bits", "w4a4,w8a8").code == 0
    assert len(rest.names) == 2


def test_pairs_are_added_and_only_those_asked_for_are_shown(run: Path, tmp_path: Path) -> None:
    assert evaluate(run, "--bits", "w4a8").code == 0
    path = tmp_path / "out.json"
    done = evaluate(run, "--bits", "w8a4,w8a8", "--json", path)
    assert done.code == 0, done.err
    assert list(content(run)["pairs"]) == ["w4a8", "w8a4", "w8a8"]
    assert list(json.loads(path.read_text())["pairs"]) == ["w8a4", "w8a8"]
    assert "w 8" in done.out and "w 4" not in done.out
    refused(evaluate(run, "--json", path), "out.json exists already", "--force")
    assert "w4a4" not in content(run)["pairs"]


def test_another_question_replaces_the_answers_only_by_force(run: Path) -> None:
    assert evaluate(run, "--bits", "w4a4").code == 0
    before = (run / "eval.json").read_bytes()
    fewer = ("--bits", "w8a8", "--images", 8)
    refused(
        evaluate(run, *fewer), "eval.json holds 16 images of tiny", "in ort",
        "asked for are 8 images", "--force replaces it",
    )  # fmt: skip
    assert (run / "eval.json").read_bytes() == before
    assert evaluate(run, *fewer, "--force").code == 0
    assert list(content(run)["pairs"]) == ["w8a8"]
    (run / "eval.json").write_text(json.dumps({"format": 1, "question": {}}))
    refused(evaluate(run, *fewer), "eval.json is damaged", "--force replaces it")
    assert evaluate(run, *fewer, "--force").code == 0


def turned_data() -> DataSet:
    """The tiny images, upside down: other images under the same name."""
    found = tiny_data()
    images = Images(found.test.load(slice(None))[:, :, ::-1].copy(), found.test.labels)
    return replace(found, test=images)


def test_other_images_of_the_same_name_are_another_question(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(run, "--bits", "w4a4").code == 0
    known = content(run)["pairs"]["w4a4"]
    monkeypatch.setattr("tiny_training.tiny_data", turned_data)
    again = (run, "--bits", "w4a4")
    refused(evaluate(*again), "others, of the same name", "--force replaces it")
    assert content(run)["pairs"]["w4a4"] == known
    assert evaluate(*again, "--force").code == 0
    found = content(run)["pairs"]["w4a4"]
    model = load_adaptive(Run.open(run))
    select(model, Selection(default=LayerBits(4, 4)))
    assert found["accuracy"] == accuracy(model, turned_data().test)


def test_other_weights_are_measured_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(run, "--bits", "w4a4,w8a8").code == 0
    opened = Run.open(run)
    state = opened.load_weights(Stage.MODEL)
    opened.save_weights(Stage.MODEL, {**state, "8.layer.bias": state["8.layer.bias"] + 9})
    count = Counting(monkeypatch)
    done = evaluate(run, "--bits", "w4a4")
    assert (done.code, count.names) == (0, ["w4a4"])
    assert "of other weights: everything is measured again" in done.err
    assert list(content(run)["pairs"]) == ["w4a4"]


def test_transductive_is_beside_and_changes_nothing(run: Path) -> None:
    assert evaluate(run, "--bits", "w4a4").code == 0
    before = content(run)["pairs"]["w4a4"]
    done = evaluate(run, "--bits", "w4a4,w8a8", "--transductive")
    assert done.code == 0, done.err
    after = content(run)["pairs"]
    assert {key: after["w4a4"][key] for key in before} == before
    assert all(0 <= pair["transductive"] <= 100 for pair in after.values())
    assert f"({after['w8a8']['transductive']:.2f})" in done.out
    assert "statistics of the test batches" in done.out


def test_transductive_accuracy_is_that_of_a_network_in_training(trained: Path) -> None:
    model, images = load_adaptive(Run.open(trained)), tiny_data().test
    select(model, Selection(default=LayerBits(4, 4)))
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    right = transductive_accuracy(model, images, 6)
    assert not model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    model.train()
    counted = 0
    with torch.no_grad():
        for rows in (slice(0, 8), slice(8, 16)):  # 16 images are two batches of 6 or more
            x, labels = to_batch(images, rows)
            counted += int((model(x).argmax(1) == labels).sum())
    assert right == 100 * counted / 16


def test_savings_are_counted_byte_by_byte(trained: Path) -> None:
    run = Run.open(trained)
    model = load_adaptive(run)
    weights = [8 * 9, 16 * 8 * 9, CLASSES * 16]
    biases, norms = 8 + 16 + CLASSES, 4 * (8 + 16)
    # A step a channel, one for every layer's input and one for the output.
    steps = (8 + 16 + CLASSES) + len(
        [name for name in run.load_weights(Stage.MODEL) if name.endswith("quant.step")]
    )
    found = dedicated_bytes(model, LayerBits(4, 8))
    low = weights[0] + weights[1] // 2 + weights[2] + 4 * (biases + norms)
    assert low < found <= low + 4 * (steps + 8)
    assert found - dedicated_bytes(model, LayerBits(8, 8)) == -weights[1] // 2
    state = run.load_weights(Stage.MODEL)
    counted = sum(t.nbytes for name, t in state.items() if "num_batches" not in name)
    assert adaptive_bytes(run) == counted
    assert sum(norm.num_features for norm in active_norms(model)) == 24


def test_savings_are_printed_and_kept(run: Path) -> None:
    done = evaluate(run, "--bits", "w8a8")
    savings = content(run)["savings"]
    assert (savings["pairs"], savings["storage_if_equal"]) == (4, 75.0)
    share = 1 - savings["adaptive_bytes"] / savings["dedicated_bytes"]
    assert savings["storage"] == pytest.approx(100 * share)
    assert f"{savings['storage']:.1f} % less" in done.out
    assert "passes" not in savings and "back-propagations" not in done.out


def test_what_no_integers_hold_is_measured_in_torch(tmp_path: Path) -> None:
    run = train_metamix(tmp_path / "run", weight_quantizer="dorefa")
    done = evaluate(run)
    assert done.code == 0, done.err
    pairs = content(run)["pairs"]
    where = {name: pair["where"] for name, pair in pairs.items()}
    assert where == {"w4a4": "ort", "w4a8": "ort", "w8a4": "torch", "w8a8": "torch"}
    assert "8-bit DoReFa weights" in pairs["w8a8"]["reason"] and "* in torch" in done.out


def train_mebqat(folder: Path, *settings: str) -> Path:
    kind = MebqatConfig("m", "tiny_training:plain_net", DATA)
    base = (*BASE, "float_epochs=1", "epochs=2", "calibration_images=16")
    config = override(kind, [*base, *settings])
    run = Run.create(folder, config, tiny_data(), False, False)
    mebqat.train(run, tiny_data(), Silent(), False)
    return folder


@pytest.fixture(scope="module")
def trained_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of frontend mebqat: 1-bit, float16 and float pairs too."""
    folder = tmp_path_factory.mktemp("adaptive") / "run"
    return train_mebqat(folder, "weight_bits=8,2,1,16,32", "activation_bits=8,4,1,32")


@pytest.fixture
def adaptive(trained_pairs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_pairs, tmp_path / "adaptive"))


def test_float_pairs_are_measured_in_torch(adaptive: Path) -> None:
    done = evaluate(adaptive, "--transductive")
    assert done.code == 0, done.err
    found = content(adaptive)
    integers = ["w1a1", "w2a4", "w2a8", "w8a4", "w8a8"]
    floats = ["w1a32", "w2a32", "w8a32", "w16a4", "w16a8", "w16a32", "fp"]
    assert {*found["pairs"]} == {*integers, *floats}
    for name, pair in found["pairs"].items():
        assert pair["where"] == ("ort" if name in integers else "torch")
        assert ("floating point" in pair.get("reason", "")) == (name in floats)
    # Rows of weights, columns of inputs; floating point comes last.
    table = done.out.splitlines()
    assert table[1].split() == ["weights", *("a", "1", "a", "4", "a", "8", "a", "FP")]
    names = [line[:5].strip() for line in table if line.startswith("w ")]
    assert names == ["w 1", "w 2", "w 8", "w 16", "w FP"]
    fp = found["pairs"]["fp"]
    assert f"{fp['accuracy']:.2f}*" in done.out and "* in torch: 16 and 32 bits" in done.out
    measured = Run.open(adaptive).metrics("pairs")
    known = {line["bits"]: line["test_accuracy"] for line in measured if "bits" in line}
    assert known == {name: found["pairs"][name]["accuracy"] for name in ("fp", "w8a8")}


def test_back_propagations_that_tasks_save(adaptive: Path) -> None:
    done = evaluate(adaptive, "--bits", "w8a8")
    savings = content(adaptive)["savings"]
    assert (savings["pairs"], savings["adaptive_passes"]) == (12, 4 * 2 * STEPS)
    assert savings["dedicated_passes"] == 12 * 2 * STEPS
    assert savings["passes"] == pytest.approx(100 * (1 - 4 / 12))
    assert "48 back-propagations, 144 for 12 models of one pair each: 66.7 % less" in done.out
    run = Run.open(adaptive)
    files = [run.load_weights(stage) for stage in (Stage.MODEL, Stage.NORMS)]
    state = {f"{i} {k}": t for i, file in enumerate(files) for k, t in file.items()}
    counted = sum(t.nbytes for name, t in state.items() if "num_batches" not in name)
    assert savings["adaptive_bytes"] == counted


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ("w1a8", "weights of 1 bits go with inputs of 1, FP"),
        ("w32a8", "weights of FP bits go with inputs of FP"),
    ],
)
def test_pairs_that_are_never_trained(adaptive: Path, bits: str, said: str) -> None:
    refused(evaluate(adaptive, "--bits", bits), f"{bits} is not among the candidates: {said}")


def test_a_width_that_lies_between_none_that_were_trained(adaptive: Path) -> None:
    said = "3-bit inputs were not trained, and are not between two widths above 1 that were"
    refused(evaluate(adaptive, "--bits", "w8a3"), f"w8a3: {said} (1, 4, 8, FP)")


def test_a_pair_without_statistics(adaptive: Path) -> None:
    run = Run.open(adaptive)
    rows = run.load_weights(Stage.NORMS)
    run.save_weights(Stage.NORMS, {k: t for k, t in rows.items() if k[:5] != "w2a4/"})
    refused(evaluate(adaptive, "--bits", "w2a4"), "statistics were never taken at these bits")
    assert evaluate(adaptive, "--bits", "w2a8").code == 0


def test_float_ends_are_islands_of_what_is_deployed(tmp_path: Path) -> None:
    bits = ("weight_bits=4,32", "activation_bits=4,32", "first_last_bits=32")
    run, path = train_mebqat(tmp_path / "run", *bits), tmp_path / "model.onnx"
    assert evaluate(run, "--bits", "w4a4").code == 0
    export = ("export", run, "--target", "onnx", "--bits", "w4a4", "-o", path, "--allow-float")
    exported = run_qtool(*export)
    assert exported.code == 0, exported.err
    (record,) = check([path], DATA, ["ort"], None, Silent())
    pair = content(run)["pairs"]["w4a4"]
    assert record.islands and pair["where"] == "ort" and "reason" not in pair
    assert (pair["accuracy"], pair["bops"]) == (record.accuracy["ort"], record.bops)


@pytest.mark.nightly
def test_runs_of_other_frontends(trained: Path, tmp_path: Path) -> None:
    images = ("--model", "tiny_training:plain_net", "--data", DATA)
    base = (*images, "--set", f"weights={trained}")
    ptq = tmp_path / "ptq"
    settings = ("activation_bits=8,4", "weight_bits=8", "presets=w8a4", "calibration_images=8")
    chosen = [part for setting in settings for part in ("--set", setting)]
    assert run_qtool("train", "ptq", *base, *chosen, "--out", ptq).code == 0
    assert evaluate(ptq).code == 0
    assert list(content(ptq)["pairs"]) == ["w8a4", "w8a8"]
    qat = tmp_path / "qat"
    short = ("--set", "epochs=0", "--set", "batch_size=8")
    uniform = run_qtool("train", "qat", *base, *short, "--set", "bits=w4a3", "--out", qat)
    assert uniform.code == 0, uniform.err
    assert evaluate(qat).code == 0
    assert content(qat)["pairs"]["w4a3"]["bits"] == [4, 3]
    refused(evaluate(qat, "--bits", "w4a4"), "weights of 4 bits go with inputs of 3")


def test_mistakes_are_one_line_and_write_nothing(run: Path, tmp_path: Path) -> None:
    refused(evaluate(tmp_path / "none"), "no such directory")
    refused(
        evaluate(run, "--bits", "w4a4,w2a4"), "--bits 'w4a4,w2a4'", "w2a4 is not among",
        "there are weights of 4, 8 bits",
    )  # fmt: skip
    refused(evaluate(run, "--bits", "w4"), "'w4' is not like w4a4 or fp")
    refused(evaluate(run, "--runtime", "orr"), "'orr' is not one of", "torch")
    refused(run_qtool("eval", run, "--data", "test_eval:other_data"), "was trained on")
    (run / "model.safetensors").unlink()
    refused(evaluate(run), "no model.safetensors", "--resume")
    assert not (run / "eval.json").exists() and not (run / "eval.png").exists()


def other_data() -> Any:
    data = tiny_data()
    return replace(data, classes=CLASSES + 1)


def test_bits_of_each_layer_are_no_pair(tmp_path: Path) -> None:
    from qtool.settings.qat import QatConfig

    config = QatConfig("q", "tiny_training:plain_net", DATA)
    run = Run.create(tmp_path / "run", config, tiny_data(), False, False)
    run.save_weights(Stage.MODEL, {"x": torch.zeros(1)})
    run.save_bits({"layers": {"0": [8, 8], "1": [4, 4], "2": [4, 3], "3": [8, 8]}})
    refused(evaluate(run.folder), "bits of its own for each layer", "qtool check")


def test_a_new_training_forgets_the_answers(run: Path) -> None:
    assert evaluate(run, "--bits", "w4a4").code == 0
    assert read_grid(run / "eval.json") is not None
    config = Run.open(run).config
    assert isinstance(config, MetaMixConfig)
    Run.create(run, config, tiny_data(), resume=False, force=True)
    assert not (run / "eval.json").exists() and not (run / "eval.png").exists()
