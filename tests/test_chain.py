"""The commands end to end on a tiny run: real data, real files, three runtimes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from conftest import run_qtool

SCHEMA = {
    "accuracy", "parity", "bops", "macs", "weight_bytes", "file_bytes", "integer_coverage",
    "latency_ms",
}  # fmt: skip


@pytest.fixture(scope="module")
def report(
    exported: Path, searched_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict:
    path = tmp_path_factory.mktemp("report") / "check.json"
    files = (exported / "model.onnx", exported / "model.so")
    done = run_qtool(
        "check", *files, "--reference", searched_run, "--require-parity", "--json", path,
        "--original", searched_run,
    )  # fmt: skip
    assert done.code == 0, done.err
    content: dict = json.loads(path.read_text())
    return content


def test_report_has_the_promised_fields(report: dict) -> None:
    assert set(report) >= SCHEMA
    assert set(report["accuracy"]) == {"float", "fake_quant", "reference", "ort", "tvm"}
    assert set(report["parity"]) == {"ort", "tvm"}
    fields = {"mismatched", "compared", "max_lsb", "first_divergence"}
    assert all(set(parity) >= fields for parity in report["parity"].values())
    assert all(set(item) >= {"median", "threads"} for item in report["latency_ms"].values())


def test_three_runtimes_compute_the_same_integers(report: dict) -> None:
    for parity in report["parity"].values():
        assert parity["mismatched"] == 0 and parity["first_divergence"] is None
        # every tensor of 32 images and 2,000 x 10 logits
        assert parity["compared"] > 2_000_000


def test_the_original_is_compared_and_its_float_network_timed(report: dict) -> None:
    original = report["original"]
    assert original["origin"].startswith("run ") and original["images"] == 8
    # Every quantizer of the network is an integer tensor.
    assert original["integers"]["compared"] == 702_752
    assert original["same_class"] is not None and original["required_db"] is None
    assert set(report["latency_ms"]) == {"ort", "tvm", "fp32 ort"}
    assert report["fp32_file_bytes"] > report["file_bytes"]


@pytest.mark.nightly
def test_a_module_is_compared_with_its_original(exported: Path, searched_run: Path) -> None:
    check = ("check", exported / "model.so", "--original", searched_run)
    done = run_qtool(*check, "--require-original")
    assert done.code == 0, done.err
    assert "latency fp32 ort" in done.out and "integers differ from run" in done.out


def test_fake_quantized_torch_agrees_with_the_integers(report: dict) -> None:
    accuracy = report["accuracy"]
    # Rounded: in floating point 37.7 - 37.6, two images of 2,000, is more than 0.1.
    assert round(abs(accuracy["fake_quant"] - accuracy["reference"]), 6) <= 0.1
    assert accuracy["reference"] == accuracy["ort"] == accuracy["tvm"]


def test_nothing_is_computed_in_floating_point(report: dict) -> None:
    assert report["integer_coverage"] == {"runtime": "ort", "float_ops": {}}


def test_budget_is_met_and_used(report: dict, searched_run: Path) -> None:
    bits = json.loads((searched_run / "bits.json").read_text())
    assert bits["bops"] == report["bops"] and bits["finetuned"]
    assert 0.95 * 48e6 <= report["bops"] <= 48e6
    assert bits["layers"] == report["layers"]


def test_weights_are_stored_in_four_bits(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    kinds = {init.name: init.data_type for init in model.graph.initializer}
    packed = [name for name, kind in kinds.items() if kind == onnx.TensorProto.INT4]
    assert len(packed) == 17  # all layers but the first, the last, and one of 144 weights
    assert not {node.op_type for node in model.graph.node if node.domain}
    assert model.ir_version <= 13


def without_torch(*words: object) -> "subprocess.CompletedProcess[str]":
    """Return a command's result where torch cannot be imported: checking does not need it."""
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom qtool.cli.main import main\n"
        f"sys.argv = ['qtool', *{[str(word) for word in words]!r}]\nmain()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_missed_bars_exit_1_and_say_by_how_much(exported: Path) -> None:
    model = exported / "model.onnx"
    check = ("check", model, "--runtime", "reference,ort")
    slack = without_torch(*check, "--min-accuracy", "101", "--max-bops", "1M")
    assert slack.returncode == 1
    assert "below the required 101 %" in slack.stderr and "above 1,000,000" in slack.stderr
    lonely = run_qtool("check", model, "--runtime", "ort", "--require-parity")
    assert lonely.code == 1 and "at least two runtimes" in lonely.err


def test_other_bits_of_the_same_run(searched_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "w4a4.onnx"
    done = run_qtool("export", searched_run, "--target", "onnx", "--bits", "w4a4", "-o", path)
    assert done.code == 0, done.err
    counted = run_qtool("bops", path, "--json")
    assert json.loads(counted.out)["bops"] == 50_995_200


def test_bops_of_named_networks() -> None:
    asked = ("--bits", "w4a4", "--first-last", 8, "--input", "3x224x224")
    mobilenet = run_qtool("bops", "mobilenet_v2", *asked)
    assert "5.394 G (5,394,053,120 from 300,774,272 MACs)" in mobilenet.out
    resnet = run_qtool("bops", "resnet18", *asked)
    assert "34.714 G (34,714,419,200 from 1,814,073,344 MACs)" in resnet.out


def test_library_runs_without_its_onnx_twin(exported: Path) -> None:
    done = run_qtool("check", exported / "model.so")
    assert done.code == 0, done.err
    assert "accuracy tvm" in done.out


def test_lists() -> None:
    for what, name in (
        ("recipes", "metamix_fashion"), ("models", "resnet18"), ("runtimes", "tvm"),
        ("datasets", "fashion_mnist_12k"), ("quantizers", "any_precision"),
        ("searches", "hessian"), ("analyses", "pareto"),
    ):  # fmt: skip
        assert name in run_qtool("list", what).out


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom qtool.cli.main import main\nsys.argv = ['qtool', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "bad = {'torch', 'onnx', 'onnxruntime', 'tvm', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(repr(bad) if bad else 0)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: qtool" in done.stdout
    # 0.3 s is the bar (0.06 s measured); ten times that only catches a heavy import.
    assert time.monotonic() - began < 3
