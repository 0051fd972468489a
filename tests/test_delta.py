"""`qtool eval --delta`: a run at several precisions beside individually trained ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, run_qtool
from test_cli_errors import refused
from tiny_training import BASE

from qtool.checking.delta import delta_of, individual_runs
from qtool.checking.grid import Request
from qtool.checking.grid_record import GridRecord, PairRecord, Question, Savings
from qtool.checking.meter import Meter
from qtool.core.errors import UserError
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits
from qtool.runs.run import Run

DATA = "tiny_training:tiny_data"
OTHER = "test_delta:two_classes"
BITS = "w8a8,w4a4"


def two_classes() -> Any:
    """The tiny images with two classes instead of four."""
    from dataclasses import replace

    from tiny_training import tiny_data

    from qtool.data.images import Images

    data = tiny_data()
    pixels = data.train.load(slice(None))
    images = Images(pixels, data.train.labels % 2)
    return replace(data, train=images, test=images.head(16), classes=2)


def train(frontend: str, folder: Path, *settings: str, data: str = DATA) -> Path:
    usual = ("model=tiny_training:plain_net", "float_epochs=1", "epochs=1", *BASE)
    words = (w for each in (*usual, *settings) for w in ("--set", each))
    done = run_qtool("train", frontend, "--data", data, "--out", folder, *words)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adaptive run and individual ones."""
    folder = tmp_path_factory.mktemp("delta")
    train("mebqat", folder / "run", "weight_bits=8,4,2,32", "activation_bits=8,4,2,32")
    for bits in ("w8a8", "w4a4"):
        train("qat", folder / bits, f"bits={bits}", "teacher=")
    return folder


@pytest.fixture
def runs(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "runs"))


def evaluate(
    runs: Path, *others: str, bits: str = BITS, more: tuple[object, ...] = ()
) -> Result:
    return run_qtool(
        "eval", runs / "run", "--delta", *(runs / name for name in others), "--bits", bits,
        "--data", DATA, *more,
    )  # fmt: skip


def test_delta_is_the_mean_of_ratios(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    done = evaluate(runs, "w4a4", "w8a8", more=("--json", output))
    assert done.code == 0, done.err
    written = json.loads(output.read_text())
    rows = written["delta"]["pairs"]
    assert list(rows) == ["w8a8", "w4a4"]
    for name, row in rows.items():
        alone = json.loads((runs / name / "eval.json").read_text())["pairs"][name]["accuracy"]
        assert (row["accuracy"], row["individual"]) == (
            written["pairs"][name]["accuracy"], alone
        )  # fmt: skip
        assert row["relative"] == pytest.approx(100 * row["accuracy"] / alone)
        assert row["run"] == str(runs / name)
        assert f"{row['relative']:.2f} %" in done.out
    mean = sum(row["relative"] for row in rows.values()) / 2
    assert written["delta"]["delta"] == pytest.approx(mean)
    assert f"delta: {mean:.2f} %" in done.out


def test_what_is_known_is_not_measured_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(runs, "w4a4", "w8a8").code == 0

    def measured(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Meter, "measure", measured)
    assert evaluate(runs, "w8a8", "w4a4").code == 0


def test_pairs_between_trained_ones_are_compared_too(runs: Path) -> None:
    train("qat", runs / "w5a5", "bits=w5a5", "teacher=")
    done = evaluate(runs, "w5a5", bits="w5a5", more=("--calibration", DATA))
    assert done.code == 0 and "delta: " in done.out and "never trained" in done.out, done.err


@pytest.mark.parametrize(("others", "bits", "words"), [
    (("w8a8",), BITS, ("no run was trained at w4a4", "--bits")),
    (("w8a8", "w4a4"), "w4a4", ("w8a8: it was trained at w8a8", "compared at w4a4")),
    (("w8a8", "w8a8", "w4a4"), BITS, ("were both trained at w8a8", "give one of them")),
    (("run", "w4a4"), BITS, ("serves 13 pairs of bits, not one", "frontend qat")),
    ((), BITS, ("--delta compares RUN with runs", "--delta INDIVIDUAL_RUN...")),
    (("none", "w4a4"), BITS, ("none: no such directory",)),
])  # fmt: skip
def test_runs_that_do_not_fit_are_refused(
    runs: Path, others: tuple[str, ...], bits: str, words: tuple[str, ...]
) -> None:
    refused(evaluate(runs, *others, bits=bits), *words)
    assert not (runs / "run/eval.json").exists()


def test_individual_runs_need_the_word(runs: Path) -> None:
    done = run_qtool("eval", runs / "run", runs / "w4a4", "--data", DATA)
    refused(done, "--delta compares RUN with runs")


def test_other_images_are_refused(runs: Path) -> None:
    train("qat", runs / "other", "bits=w8a8", "teacher=", data=OTHER)
    refused(
        evaluate(runs, "other", "w4a4"), f"it was trained on {OTHER}, run", f"on {DATA}"
    )  # fmt: skip
    # Measured before on other images: nothing is compared with that.
    first = run_qtool("eval", runs / "w4a4", "--data", DATA, "--images", 8)
    assert first.code == 0, first.err
    done = evaluate(runs, "w4a4", "w8a8")
    assert done.code == 2 and "w4a4/eval.json holds 8 images" in done.err, done.err
    assert evaluate(runs, "w4a4", "w8a8", more=("--force",)).code == 0


def test_a_network_that_is_never_right_has_no_ratio(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, (run, other) = LayerBits(4, 4), (Run.open(kept / "run"), Run.open(kept / "w4a4"))
    record = PairRecord((4, 4), 50.0, "ort", 1)
    found = GridRecord(
        Question("", DATA, 16, "ort"), Savings(1, 1, 1, 0.0, 0.0), {"w4a4": record}
    )
    never = GridRecord(
        found.question, found.savings, {"w4a4": PairRecord((4, 4), 0, "ort", 1)}
    )
    monkeypatch.setattr("qtool.checking.delta.evaluate", lambda *_: never)
    others = individual_runs(run, [other], [pair])
    with pytest.raises(UserError, match="right for none of the images"):
        delta_of(found, others, two_classes(), Request([pair], "ort"), Silent())
    monkeypatch.setattr("qtool.checking.delta.evaluate", lambda *_: found)
    assert (
        delta_of(found, others, two_classes(), Request([pair], "ort"), Silent()).delta == 100
    )
