"""A run keeps its traced graph: exporting other bits needs no torch, and is never stale."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from conftest import export_without_torch, run_qtool

from qtool.tensor_file import load_tensors, save_tensors

EXPORT = """
import sys
from pathlib import Path
from qtool.export.export import ExportOptions, export
export(Path(sys.argv[1]), ExportOptions(bits="w4a4"), Path(sys.argv[2]), force=True)
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "onnxscript"}))
"""


def export(run: Path, output: Path) -> bytes:
    done = run_qtool(
        "export", run, "--target", "onnx", "--bits", "w4a4", "--force", "-o", output
    )
    assert done.code == 0, done.err
    return output.read_bytes()


def test_second_export_needs_no_torch(run_copy: Path, tmp_path: Path) -> None:
    (run_copy / "adaptive.onnx").unlink(missing_ok=True)
    first = export(run_copy, tmp_path / "first.onnx")
    command = [sys.executable, "-c", EXPORT, run_copy, tmp_path / "second.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert (tmp_path / "second.onnx").read_bytes() == first


def test_three_selections_from_one_graph_without_torch(run_copy: Path, tmp_path: Path) -> None:
    first = export(run_copy, tmp_path / "first.onnx")
    kept = (run_copy / "adaptive.onnx").read_bytes()
    outputs = {
        "w4a4": tmp_path / "a.onnx",
        "w4a8": tmp_path / "b.onnx",
        "w4a8,features.2.*=w4a4,features.7.0=w4a3": tmp_path / "c.onnx",
    }
    export_without_torch(run_copy, outputs)
    assert (run_copy / "adaptive.onnx").read_bytes() == kept
    files = [path.read_bytes() for path in outputs.values()]
    assert files[0] == first and len(set(files)) == 3
    (mixed,) = (
        json.loads(prop.value) for prop in onnx.load_from_string(files[2]).metadata_props
        if prop.key == "qtool.bits"
    )  # fmt: skip
    layers = ("features.0.0", "features.2.conv.0.0", "features.3.conv.2", "features.7.0")
    assert [mixed[layer] for layer in layers] == [[8, 8], [4, 4], [4, 8], [4, 3]]


@pytest.mark.parametrize(
    "damage", [b"no protobuf at all", pytest.param(b"", marks=pytest.mark.nightly)]
)
def test_a_damaged_graph_is_traced_again(
    run_copy: Path, tmp_path: Path, damage: bytes
) -> None:
    first = export(run_copy, tmp_path / "first.onnx")
    kept = (run_copy / "adaptive.onnx").read_bytes()
    (run_copy / "adaptive.onnx").write_bytes(damage)
    assert export(run_copy, tmp_path / "second.onnx") == first
    assert (run_copy / "adaptive.onnx").read_bytes() == kept


@pytest.mark.nightly
def test_other_weights_are_traced(run_copy: Path, tmp_path: Path) -> None:
    first = export(run_copy, tmp_path / "first.onnx")
    path = run_copy / "model.safetensors"
    state, mark = load_tensors(path)
    name = next(name for name in state if name.endswith("layer.weight"))
    state[name] = -state[name]
    save_tensors(path, state, mark)
    changed = export(run_copy, tmp_path / "second.onnx")
    assert changed != first
    (run_copy / "adaptive.onnx").unlink()
    assert export(run_copy, tmp_path / "third.onnx") == changed


def test_a_run_that_may_only_be_read_exports(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export(run_copy, tmp_path / "first.onnx")
    (run_copy / "adaptive.onnx").unlink()

    def refuse(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr("qtool.export.adaptive.write_bytes", refuse)
    assert export(run_copy, tmp_path / "second.onnx") == first
    assert not (run_copy / "adaptive.onnx").exists()
