"""Fixtures: a trained tiny run, made once a session, and graphs written as text."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from tiny_files import qdq

from passes.pipelines import DEBUG
from qtool.cli import main as cli

# Graphs are checked between passes, in the processes that tests start too.
os.environ[DEBUG] = "1"
# Triton's kernels are interpreted, in those too; with 0 they run on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

NO_RELAY = "needs Relay's environment: make test-relay makes it and runs this"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs Relay's environment, unless it is asked for (-m relay)."""
    if "relay" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("relay"):
                item.add_marker(pytest.mark.skip(reason=NO_RELAY))


TINY = [
    "--set", "train_images=256", "--set", "batch_size=64", "--set", "meta_epochs=1",
    "--set", "search_epochs=1", "--set", "finetune_epochs=1", "--set", "norm_batches=2",
]  # fmt: skip


class Result:
    """Exit code and output of a command, run in this process."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def run_qtool(*args: object) -> Result:
    """Run `qtool args` through `main`, which maps errors to exit codes."""

    def invoke() -> None:
        cli.main()

    runner = CliRunner()
    with runner.isolation() as (out, err, _):
        import sys
        from unittest import mock

        code = 0
        with mock.patch.object(sys, "argv", ["qtool", *map(str, args)]):
            try:
                invoke()
            except SystemExit as stop:
                code = int(stop.code or 0)
        return Result(code, out.getvalue().decode(), err.getvalue().decode())


_EXPORT = """
import sys
from pathlib import Path
sys.modules["torch"] = sys.modules["onnxscript"] = None  # importing them fails
from qtool.export.export import ExportOptions, export
run, *pairs = sys.argv[1:]
for bits, output in zip(pairs[::2], pairs[1::2]):
    export(Path(run), ExportOptions(bits=bits), Path(output), force=True)
"""


def export_without_torch(run: Path, outputs: Mapping[str, Path]) -> None:
    """Export `run` at several bits, in a process in which importing torch fails."""
    pairs = [str(part) for pair in outputs.items() for part in pair]
    command = [sys.executable, "-c", _EXPORT, str(run), *pairs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def searched_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, trained and searched: seconds, not accurate, but real in every link."""
    folder = tmp_path_factory.mktemp("run") / "run"
    trained = run_qtool("train", "metamix_fashion", "--epochs", 1, *TINY, "--out", folder)
    assert trained.code == 0, trained.err
    found = run_qtool("search", folder, "--bops", "48M")
    assert found.code == 0, found.err
    return folder


@pytest.fixture
def run_copy(searched_run: Path, tmp_path: Path) -> Path:
    """A copy of the searched run that a test may damage."""
    return Path(shutil.copytree(searched_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def exported(searched_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx and model.so of the searched run."""
    folder = tmp_path_factory.mktemp("exported")
    for target, name in (("onnx", "model.onnx"), ("tvm", "model.so")):
        done = run_qtool("export", searched_run, "--target", target, "-o", folder / name)
        assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.onnx, as it were of another tool, and its model.onnx, .so, .json and .py."""
    folder = tmp_path_factory.mktemp("tiny")
    onnx.save(qdq(), folder / "tiny.onnx")
    script = ("--emit-ir", folder / "model.py")
    done = run_qtool("import", folder / "tiny.onnx", "-o", folder / "model.so", *script)
    assert done.code == 0, done.err
    twin = run_qtool("import", folder / "tiny.onnx", "-o", folder / "model.onnx")
    assert twin.code == 0, twin.err
    for name in ("model.so", "model.py"):
        assert f"{folder / name}: {(folder / name).stat().st_size:,} bytes" in done.out
    assert "compiling for" in done.err and "linking with" in done.err
    return folder


def graph(text: str) -> ir.Model:
    """Return the model that ONNX text syntax describes, with inferred shapes."""
    proto = onnx.parser.parse_model(text)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in model.graph:
        if node.op_type == "FakeQuant":  # which the inference does not know
            result, source = node.outputs[0], node.inputs[0]
            result.type = ir.TensorType(ir.DataType.FLOAT)
            if result.shape is None and source is not None:
                result.shape = source.shape
    return model
