"""The report of a check: where runtimes differ, what is required, which CPU it ran on."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Result, run_qtool
from test_cli_errors import refused

from qtool.checking.accuracy import top1
from qtool.checking.bars import Bars, missed_bars
from qtool.checking.record import CheckRecord
from qtool.data.images import Images
from qtool.report.table import SHOWN, rows
from runtimes.compare import Parity
from runtimes.isa import Isa, detect_saturation, integer_features, read_isa

ASKED = ("--runtime", "reference,ort,openvino", "--require-parity")


@pytest.fixture(scope="module")
def checked(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, dict]:
    """A check with OpenVINO: what it printed, and its report."""
    path = tmp_path_factory.mktemp("check") / "check.json"
    result = run_qtool("check", exported / "model.onnx", *ASKED, "--json", path)
    assert result.code == 0, result.err
    return result, json.loads(path.read_text())


def test_openvino_is_reported_and_not_required(checked: tuple[Result, dict]) -> None:
    result, report = checked
    parity = report["parity"]["openvino"]
    assert parity["against"] == "reference" and parity["required"] is False
    assert parity["mismatched"] > 0 and "docs/openvino.md" in parity["reason"]
    assert parity["compared"] == report["parity"]["ort"]["compared"]
    for key in ("accuracy", "latency_ms", "float_ops"):
        assert "openvino" in report[key]
    assert "0 is not required" in result.out


def test_exact_runtimes_stay_required(checked: tuple[Result, dict]) -> None:
    parity = checked[1]["parity"]["ort"]
    assert parity["required"] is True and parity["reason"] is None
    assert parity["mismatched"] == 0 and parity["diverging"] == []
    assert parity["same_class"] == 100


def test_diverging_tensors_add_up(checked: tuple[Result, dict]) -> None:
    result, report = checked
    parity = report["parity"]["openvino"]
    diverging = parity["diverging"]
    assert sum(tensor["mismatched"] for tensor in diverging) == parity["mismatched"]
    assert all(0 < t["mismatched"] <= t["compared"] for t in diverging)
    assert max(t["max_lsb"] for t in diverging) == parity["max_lsb"]
    first = diverging[0]
    assert parity["first_divergence"]["tensor"] == first["tensor"]
    # OpenVINO does not round the branch of a residual sum, nor always as we do the result of a
    # strided convolution (docs/openvino.md). Which one comes first depends on the weights.
    kind = first["operator"]
    assert kind in ("Add", "Conv")
    assert f"first at {first['tensor']} ({kind}): {first['mismatched']:,} of" in result.out
    assert diverging[-1]["tensor"] == "logits"
    assert parity["logits"]["mismatched"] == diverging[-1]["mismatched"]
    assert 0 <= parity["same_class"] <= 100


def test_openvino_alone_is_not_parity(exported: Path) -> None:
    check = ("check", exported / "model.onnx", "--runtime", "ort,openvino")
    result = run_qtool(*check, "--require-parity")
    assert result.code == 1
    assert "at least two runtimes to compare, of reference, ort, tvm" in result.err


@pytest.mark.nightly
def test_an_older_report_is_kept_without_force(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    path.write_text("precious")
    check = ("check", exported / "model.onnx", "--runtime", "reference", "--json", path)
    refused(run_qtool(*check), str(path), "exists already", "--force")
    assert path.read_text() == "precious"
    assert run_qtool(*check, "--force").code == 0
    assert "accuracy" in json.loads(path.read_text())


# Counting


def test_parity_lists_only_what_differs_in_order() -> None:
    parity, zeros = Parity(), np.zeros((2, 3), np.uint8)
    parity.add("same", zeros, zeros)
    parity.add("one", zeros, np.array([[0, 0, 0], [0, 7, 0]], np.uint8))
    parity.add("shape", zeros, zeros[:1])
    assert parity.diverging == [
        {"tensor": "one", "mismatched": 1, "compared": 6, "max_lsb": 7},
        {"tensor": "shape", "mismatched": 6, "compared": 6, "max_lsb": 255},
    ]
    assert parity.first_divergence == {
        "tensor": "one", "index": [1, 1], "expected": 0, "got": 7,
    }  # fmt: skip
    assert (parity.mismatched, parity.compared, parity.max_lsb) == (7, 18, 255)


def record_with(diverging: int, isa: Isa, reason: str | None) -> CheckRecord:
    """A record whose runtime ort differs in `diverging` tensors."""
    parity = Parity()
    for index in range(diverging):
        parity.add(f"t{index}", np.zeros(4, np.uint8), np.ones(4, np.uint8))
    counts = parity.to_json()
    tensors = [{**entry, "operator": None} for entry in counts["diverging"]]
    return CheckRecord.from_json({
        "accuracy": {}, "dataset": None, "images": 1, "bops": 1, "macs": 1, "weight_bytes": 1,
        "files": {}, "digest": "", "layers": {}, "file_bytes": 1, "islands": [],
        "integer_coverage": {"runtime": "ort", "float_ops": {}},
        "float_ops": {"reference": {}, "ort": {}, "openvino": {"Convolution": 2}},
        "latency_ms": {}, "isa": isa.to_json(),
        "parity": {"ort": {
            "against": "reference", "required": True, "reason": reason, **counts,
            "diverging": tensors, "logits": {"mismatched": 1, "compared": 4},
            "same_class": 50.0,
        }},
    })  # fmt: skip


EXACT_ISA = Isa(("avx512_vnni",), 0, 512)


def test_table_shows_the_first_diverging_tensors_and_counts_the_others() -> None:
    table = dict(rows(record_with(SHOWN + 2, EXACT_ISA, None)))
    lines = table["  ort differs"].splitlines()
    assert lines[0] == "first at t0: 4 of 4 (1e+02 %), up to 1 LSB"
    assert len(lines) == SHOWN + 1 and lines[-1] == "and 2 more tensors"
    assert table["  ort logits"].startswith("25.00 % differ; same class for 50.00 %")
    assert table["ISA"] == "avx512_vnni, u8s8 exact"
    assert table["integer coverage"] == "float operators in openvino: 2 Convolution"


# The CPU


def saturating(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """A 1x1 convolution whose pairs of products saturate to int16, as VPMADDUBSW does."""
    products = x.astype(np.int64)[:, None] * w.astype(np.int64)[None, :, :, None, None]
    pairs = np.clip(products[:, :, ::2] + products[:, :, 1::2], -(2**15), 2**15 - 1)
    return np.clip(np.rint(pairs.sum(2) / 2**14), 0, 255).astype(np.uint8)


def exact(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    sums = np.einsum("ncyx,oc->noyx", x.astype(np.int64), w.astype(np.int64))
    return np.clip(np.rint(sums / 2**14), 0, 255).astype(np.uint8)


def test_saturation_is_detected_and_exact_sums_are_not_accused() -> None:
    wrong, probed = detect_saturation(saturating)
    assert 0 < probed // 2 <= wrong <= probed
    assert detect_saturation(exact) == (0, probed)


def test_this_machine_agrees_with_its_flags() -> None:
    isa = read_isa()
    if {"avx512_vnni", "avx_vnni", "amx_int8"} & set(isa.features):
        assert not isa.saturates
    assert str(isa).startswith(isa.features[0]) and isa.to_json()["summary"] == str(isa)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t: fpu avx2 avx512bw avx512_vnni amx_int8",
         ("amx_int8", "avx512_vnni", "avx512bw", "avx2")),
        ("processor\t: 0\nflags\t\t: sse4_1 avx2 avx_vnni", ("avx_vnni", "avx2", "sse4.1")),
        ("Features\t: fp asimd asimddp", ("neon dotprod", "neon")),
    ],
)  # fmt: skip
def test_features_are_read_best_first(
    text: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert integer_features(path) == expected


def test_features_fall_back_to_the_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert integer_features(tmp_path / "absent") == ("riscv64",)


def test_saturation_is_reported_with_the_parity_it_breaks(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that saturates, and an ONNX Runtime whose result is off by it."""
    from runtimes.ort import OrtRuntime

    monkeypatch.setattr("qtool.checking.check.read_isa", lambda: Isa(("avx2",), 512, 512))
    true = OrtRuntime.intermediates
    monkeypatch.setattr(
        OrtRuntime,
        "intermediates",
        lambda self, x: {k: v ^ 1 for k, v in true(self, x).items()},
    )
    path = tmp_path / "check.json"
    result = run_qtool("check", exported / "model.onnx", "--require-parity", "--json", path)
    said = "avx2, u8s8 SATURATES in ONNX Runtime: 512 of 512 probed sums are wrong"
    assert result.code == 1 and said in result.err
    report = json.loads(path.read_text())
    assert report["isa"]["u8s8_exact"] is False and report["isa"]["summary"] == said
    assert said in report["parity"]["ort"]["reason"]
    record = CheckRecord.from_json(report)
    assert dict(rows(record))["ISA"] == said
    (missed,) = missed_bars(record, Bars(parity=True))
    assert said in missed


def testtop1_of_clips_is_that_of_their_mean_logits() -> None:
    clips = Images(np.zeros((2, 1, 1, 1), np.uint8), np.array([1, 0]))
    frames = np.array([[0.0, 5.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], np.float32)
    assert top1(frames, clips) == 100.0
    assert top1(frames[::2], clips) == 50.0


@pytest.mark.parametrize("option", ["--min-snr", "--min-accuracy"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_bars_are_finite(option: str, value: str, exported: Path) -> None:
    done = run_qtool("check", exported / "model.onnx", option, value)
    assert done.code == 2 and f"'{value}' is not a finite number" in done.err


def test_a_fixed_batch_is_refused(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(model, tmp_path / "seven.onnx")
    done = run_qtool("check", tmp_path / "seven.onnx")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "seven.onnx: its batch is fixed at 7; qtool import" in done.err


def test_two_files_of_one_model_for_one_runtime(tiny: Path, tmp_path: Path) -> None:
    """One of them would not be looked at, and a check that passes would say nothing of it."""
    other = tmp_path / "other.onnx"
    other.write_bytes((tiny / "model.onnx").read_bytes())
    result = run_qtool("check", tiny / "model.onnx", other)
    refused(result, str(other), "hold the same model", "check one of them at a time")
    assert run_qtool("check", tiny / "model.onnx", tiny / "model.onnx").code == 0
