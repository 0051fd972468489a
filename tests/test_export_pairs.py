"""``qtool export RUN --bits all``: real runs, the command line, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Result, run_qtool
from test_pair_files import Wide
from test_parity import randomise_norms
from tiny_training import CLASSES, SHAPE, tiny_data

from qtool.data.images import DataSet
from qtool.export.export_pairs import names_pairs
from runtimes.latency import Latency

DATA = ("--data", "test_export_pairs:data")
ROOT = Path(__file__).parent.parent


def data() -> DataSet:
    return tiny_data()


class Net(Wide):
    """The residual network, on the tiny images."""

    def __init__(self, in_channels: int = SHAPE[0], classes: int = CLASSES) -> None:
        super().__init__()
        width = self.head.in_features
        self.stem[0] = torch.nn.Conv2d(in_channels, width, 3, padding=1)
        self.head = torch.nn.Linear(width, classes)


def settings(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def train_ptq(folder: Path, *more: str) -> Path:
    """A run of frontend ptq at 8 and 4 bits of both."""
    torch.manual_seed(2)
    net = Net()
    randomise_norms(net)
    torch.save(net.state_dict(), folder / "w.pt")
    small = ("calibration_images=32", "correction_images=16", "compare_images=8")
    bits = ("weight_bits=8,4", "activation_bits=8,4", "bits=w8a8", "presets=w4a4")
    done = run_qtool(
        "train", "ptq", "--model", "test_export_pairs:Net", *DATA, "--out", folder / "run",
        *settings(f"weights={folder / 'w.pt'}", *bits, *small, *more),
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder / "run"


def train_pairs(folder: Path, *bits: str) -> Path:
    """A run of frontend mebqat."""
    small = ("batch_size=8", "epochs=1", "float_epochs=1", "norm_batches=2")
    done = run_qtool(
        "train", "mebqat_fashion", "--model", "test_export_pairs:Net", *DATA, "--out",
        folder / "a run", *settings(*bits, *small),
    )  # fmt: skip
    assert done.code == 0, done.err
    hint = f"next: qtool eval '{folder}/a run' --bits all --data {DATA[1]}"
    assert done.out.endswith(f"{hint}\n"), done.out
    return folder / "a run"


@pytest.fixture(scope="module")
def ptq_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_ptq(tmp_path_factory.mktemp("pairs"), "quantizer=double_rounding")


@pytest.fixture(scope="module")
def pairs(ptq_run: Path) -> Path:
    folder = ptq_run.parent / "pairs"
    done = export(ptq_run, folder, "all", *DATA)
    assert done.code == 0, done.err
    for name in ("w8a8", "w8a4", "w4a8", "w4a4"):
        assert f"{name}: witness: 0 of " in done.err
        assert f"{folder / f'{name}.onnx'}: " in done.out
    assert "4 pairs in " in done.err and "nest" not in done.err
    return folder


def export(run: Path, folder: Path, bits: str, *more: object) -> Result:
    return run_qtool("export", run, "--target", "onnx", "--bits", bits, "-o", folder, *more)


def test_the_files_are_small_and_exact(pairs: Path) -> None:
    index = json.loads((pairs / "index.json").read_text())
    assert index["ratio"] <= 1.15 and len(index["pairs"]) == 4
    for name in ("w8a8", "w4a4"):
        report = pairs.parent / f"{name}.json"
        done = run_qtool(
            "check", pairs / f"{name}.onnx", "--reference", pairs.parent / "run", *DATA,
            "--require-parity", "--json", report,
        )  # fmt: skip
        assert done.code == 0, done.err
        found = json.loads(report.read_text())
        assert found["parity"]["ort"]["mismatched"] == 0
        assert not found["float_ops"]["ort"] and not found["integer_coverage"]["float_ops"]
        path = pairs / f"{name}.onnx"
        beside = index["shared"]["bytes"]
        assert found["files"] == {str(path): path.stat().st_size + beside}


@pytest.mark.nightly
def test_tvm_compiles_a_pair(pairs: Path) -> None:
    module = pairs / "w4a4.so"
    done = run_qtool("import", pairs / "w4a4.onnx", "-o", module, *DATA)
    assert done.code == 0, done.err
    report = pairs.parent / "tvm.json"
    done = run_qtool(
        "check", pairs / "w4a4.onnx", module, *DATA, "--require-parity", "--json", report
    )
    assert done.code == 0, done.err
    assert json.loads(report.read_text())["parity"]["tvm"]["mismatched"] == 0


@pytest.fixture(scope="module")
def library(ptq_run: Path, pairs: Path) -> Path:
    """The TVM library of the same pairs, in the folder of the ONNX files."""
    bits = ("--target", "tvm", "--bits", "all")
    done = run_qtool("export", ptq_run, *bits, "-o", pairs, *DATA)
    assert done.code == 0, done.err
    assert "4 pairs in " in done.err and "w4a4: witness: 0 of " in done.err
    assert [line.partition(": ")[0] for line in done.out.splitlines()] == [
        str(pairs / "model.so"), str(pairs / "model.json"),
    ]  # fmt: skip
    return pairs / "model.so"


def test_a_library_of_all_pairs_is_checked_pair_by_pair(
    pairs: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Latency(1.0, (1.0, 1.0), threads=1, runs=1)
    monkeypatch.setattr("qtool.checking.speed.measure", lambda *_, **__: measured)
    report = pairs.parent / "library.json"
    files = [pairs / f"{name}.onnx" for name in ("w8a8", "w8a4", "w4a8", "w4a4")]
    parity = (*DATA, "--require-parity", "--json", report, "--force")
    done = run_qtool("check", *files, library, *parity)
    assert done.code == 0, done.err
    models = json.loads(report.read_text())["models"]
    assert [list(model["files"]) for model in models] == [
        [str(path), f"{library} {path.stem}"] for path in files
    ]
    assert all(model["parity"]["tvm"]["mismatched"] == 0 for model in models)
    alone = ("--bits", "w4a8", "--reference", pairs.parent / "run")
    done = run_qtool("check", files[2], library, *alone, *parity)
    assert done.code == 0, done.err
    assert json.loads(report.read_text())["tvm"]["fallbacks"] == []


@pytest.mark.usefixtures("library")
def test_the_pair_changes_between_two_inferences(pairs: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((3, *SHAPE), np.float32))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "switch_bits.py"), str(pairs),
         str(tmp_path / "x.npy"), "w8a8", "w4a4"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].startswith("onnx w8a8: classes [") and "ms in turn" in lines[2]
    # Both compute the same integers.
    assert [line.replace("tvm", "onnx") for line in lines[3:5]] == lines[:2]
    assert lines[5].startswith("tvm: ") and "a switch takes " in lines[5]


def test_some_pairs(ptq_run: Path, tmp_path: Path) -> None:
    done = export(ptq_run, tmp_path / "two", "w8a8, w4a8", "--no-witness", "--input", "uint8")
    assert done.code == 0, done.err
    index = json.loads((tmp_path / "two" / "index.json").read_text())
    assert list(index["pairs"]) == ["w8a8", "w4a8"]


def test_fewer_pairs_replace_more_and_leave_what_is_not_theirs(
    pairs: Path, ptq_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pairs, tmp_path / "pairs")
    mine = (folder / "w8a4.onnx").read_bytes() + b"\0"
    (folder / "w8a4.onnx").write_bytes(mine)
    done = export(ptq_run, folder, "w4a8", "--force")
    assert done.code == 2, done.err  # one pair is one file
    done = export(ptq_run, folder, "w8a8,w4a8", "--no-witness", "--force")
    assert done.code == 0 and f"{folder / 'w4a4.onnx'} is removed" in done.err, done.err
    names = {path.name for path in folder.glob("*.onnx")}
    assert names == {"w8a8.onnx", "w4a8.onnx", "w8a4.onnx"}
    assert (folder / "w8a4.onnx").read_bytes() == mine


def test_all_goes_on_without_pairs_that_have_no_integer_form(tmp_path: Path) -> None:
    bits = ("weight_bits=8,4", "activation_bits=8,4", "quantizer=dorefa")
    run = train_pairs(tmp_path, *bits)
    reason = "8-bit DoReFa weights are odd integers"
    done = export(run, tmp_path / "one", "w8a8,w4a4", "--no-witness")
    assert done.code == 2 and reason in done.err and not (tmp_path / "one").exists()
    done = export(run, tmp_path / "pairs", "all", "--no-witness")
    assert done.code == 0 and done.err.count(reason) == 2, done.err
    assert "pair w8a4 is left out: layer " in done.err and "w8a8.onnx" not in done.out
    index = json.loads((tmp_path / "pairs" / "index.json").read_text())
    assert list(index["pairs"]) == ["w4a8", "w4a4"]
    assert list(index["left_out"]) == ["w8a8", "w8a4"]
    assert all(reason in text for text in index["left_out"].values())


def test_lsq_does_not_nest_and_says_so(tmp_path: Path) -> None:
    run = train_ptq(tmp_path)
    done = export(run, tmp_path / "pairs", "all", "--no-witness")
    assert done.code == 0 and "do not nest" in done.err, done.err


@pytest.mark.nightly
def test_a_meta_state_of_sat(tmp_path: Path) -> None:
    done = run_qtool(
        "train", "metamix_fashion", "--epochs", 1, *TINY, "--out", tmp_path / "run",
        *settings("quantizer=sat", "weight_bits=8,4", "activation_bits=8,4"),
    )  # fmt: skip
    assert done.code == 0, done.err
    done = export(tmp_path / "run", tmp_path / "pairs", "all")
    assert done.code == 0, done.err
    index = json.loads((tmp_path / "pairs" / "index.json").read_text())
    assert index["stored_apart"] == []
    done = run_qtool("check", tmp_path / "pairs" / "w4a8.onnx", "--require-parity")
    assert done.code == 0, done.err


@pytest.mark.nightly
def test_a_network_trained_on_pairs_has_statistics_of_its_own_at_each(tmp_path: Path) -> None:
    bits = ("weight_bits=8,4,2,32", "activation_bits=8,4,32", "quantizer=double_rounding")
    run = train_pairs(tmp_path, *bits)
    done = export(run, tmp_path / "pairs", "all", *DATA)
    assert done.code == 0, done.err
    index = json.loads((tmp_path / "pairs" / "index.json").read_text())
    # Float pairs have no integer module.
    assert list(index["pairs"]) == ["w8a8", "w8a4", "w4a8", "w4a4", "w2a8", "w2a4"]
    assert index["stored_apart"] == [] and index["ratio"] < 1.4
    path = tmp_path / "pairs" / "w2a4.onnx"
    done = run_qtool("check", path, "--reference", run, *DATA, "--require-parity")
    assert done.code == 0, done.err


def test_what_names_several_pairs() -> None:
    several = ("all", " ALL", "w8a8,w4a4", "w4a4, w2a2", "fp", "w8a8,fp", "w4a32, w8a8")
    single = (None, "w4a4", "w4a4,conv1=w8a8", "bits.json", "w8a8,conv")
    assert all(map(names_pairs, several)) and not any(map(names_pairs, single))


def test_refusals(ptq_run: Path, tmp_path: Path) -> None:
    def refused(*args: object) -> str:
        done = run_qtool("export", ptq_run, *args)
        assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done.err
        assert not list(tmp_path.iterdir()) or (tmp_path / "full").exists()
        return done.err

    onnx = ("--target", "onnx", "--bits", "all")
    assert "missing option -o / --output: the folder to write to" in refused(*onnx)
    tvm = ("--target", "tvm", "--bits", "all")
    assert "missing option -o / --output: the folder to write to" in refused(*tvm)
    said = refused(*tvm, "-o", tmp_path / "d", "--mcpu", "zenver4")
    assert "unknown CPU 'zenver4'" in said
    line = refused("--target", "onnx", "--bits", "w8a8,w3a8", "-o", tmp_path / "d")
    assert "w3a8 is not among the candidates: there are weights of 4, 8 bits" in line
    for bits, pair in (("fp", "fp"), ("w8a8,FP", "fp"), ("w8a8,w4a32", "w4a32")):
        line = refused("--target", "onnx", "--bits", bits, "-o", tmp_path / "d")
        assert f"{pair} has no integer form" in line and f"--bits {pair} measures it" in line
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "w8a8.onnx").write_bytes(b"")
    assert "exists already" in refused(*onnx, "-o", tmp_path / "full")
    (tmp_path / "file").write_bytes(b"")
    assert "is a file; several pairs need a folder" in refused(*onnx, "-o", tmp_path / "file")


def test_one_width_a_layer_has_no_pairs(tmp_path: Path) -> None:
    done = run_qtool(
        "train", "qat", "--model", "tiny_training:plain_net", *DATA, "--out", tmp_path / "run",
        *settings("bits=w4a4", "epochs=1", "float_epochs=1", "norm_batches=1"),
        *settings("quantizer=double_rounding"),
    )  # fmt: skip
    assert done.code == 0, done.err
    done = export(tmp_path / "run", tmp_path / "pairs", "all")
    assert done.code == 2 and "frontend qat trains one width a layer" in done.err
    done = export(tmp_path / "run", tmp_path / "one.onnx", "w4a4")
    assert done.code == 0, done.err
