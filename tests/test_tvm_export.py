"""The TVM target's artifacts and options: model.so, model.json, TVMScript, refusals."""

import hashlib
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import run_qtool
from test_cli_errors import refused
from test_cpu_target import other_architecture
from tiny_files import images, qdq, resealed

import qtool
from passes.emit.tvm.cpu_target import host_target
from qtool.checking.record import CheckRecord
from qtool.core.dialect import read_program
from qtool.core.sealed import read_seal
from qtool.export.foreign_import import read_foreign
from qtool.export.read import read_onnx
from qtool.report.table import rows
from runtimes.compare import Parity
from runtimes.host_cpu import machine_features
from runtimes.latency import Latency, measure
from runtimes.reference import ReferenceRuntime
from runtimes.tvm import TvmRuntime

EXAMPLE = Path(__file__).parent.parent / "examples" / "plain_tvm.py"


# Artifacts


def test_json_says_what_the_library_is(tiny: Path) -> None:
    content = json.loads((tiny / "model.json").read_text())
    data, sealed = (tiny / "model.so").read_bytes(), read_seal(tiny / "model.so")
    program = read_onnx(tiny / "model.onnx")
    assert content["file"] == "model.so" and content["bytes"] == len(data)
    assert content["sha256"] == hashlib.sha256(data).hexdigest()
    assert content["digest"] == sealed["digest"] == program.digest()
    assert content["input"] == {
        "name": "input", "shape": [1, 2, 5, 5], "dtype": "float32", "range": [-16.0, 15.875],
    }  # fmt: skip
    assert content["output"] == {
        "name": "output", "shape": [1, 3], "dtype": "float32", "kind": "uint8",
        "scale": 0.75, "zero_point": 100,
    }  # fmt: skip
    assert content["versions"] == {
        "qtool": qtool.__version__, "tvm": metadata.version("apache-tvm"),
        "tvm_ffi": metadata.version("apache-tvm-ffi"),
    }  # fmt: skip
    target, facts = host_target(), sealed["module"]
    assert content["target"] == sealed["cpu"] == target.to_json()
    assert content["target"]["features"] == list(target.features)
    assert content["peak_activation_bytes"] == facts["arena_bytes"]
    for name in ("kernels", "fallbacks", "packed_weights", "fused_tensors"):
        assert content[name] == facts[name]


def test_json_counts_a_trained_model(exported: Path) -> None:
    content = json.loads((exported / "model.json").read_text())
    sealed = read_seal(exported / "model.so")
    assert content["bops"] == sealed["bops"] <= 48e6 and content["macs"] == 3_091_008
    assert sum(layer["macs"] for layer in content["layers"].values()) == content["macs"]
    first = content["layers"]["features.0.0"]
    assert (first["weight_bits"], first["activation_bits"]) == (8, 8)
    assert content["bops"] == sum(
        layer["macs"] * layer["weight_bits"] * layer["activation_bits"]
        for layer in content["layers"].values()
    )


def test_traced_and_fused_tensors_are_all_tensors(tiny: Path) -> None:
    facts = read_seal(tiny / "model.so")["module"]
    program = read_onnx(tiny / "model.onnx")
    assert sorted(facts["tensors"] + facts["fused_tensors"]) == sorted(program.tensors())
    x = images(3)
    expected = ReferenceRuntime(program)
    runtime, parity = TvmRuntime(tiny / "model.so"), Parity()
    got = runtime.intermediates(x)
    assert list(got) == facts["tensors"]
    parity.add_all(expected.intermediates(x), got, facts["fused_tensors"])
    assert parity.mismatched == 0 and parity.compared == sum(t.size for t in got.values())
    assert np.array_equal(runtime.run(x), expected.run(x))


def test_a_missing_tensor_is_not_taken_for_a_fused_one() -> None:
    codes = np.zeros(4, np.uint8)
    with pytest.raises(KeyError, match="b"):
        Parity().add_all({"a": codes, "b": codes}, {"a": codes}, ["c"])
    parity = Parity()
    parity.add_all({"a": codes, "b": codes}, {"a": codes}, ["b"])
    assert (parity.compared, parity.mismatched) == (4, 0)


def test_the_readable_module_is_readable(tiny: Path) -> None:
    text = (tiny / "model.py").read_text()
    target = host_target()
    assert text.startswith(f"# qtool {qtool.__version__}: {target.mcpu} ({target.isa})")
    assert "@I.ir_module" in text and "@T.prim_func" in text
    assert "def main(" in text and "def trace(" in text
    compile(text, "model.py", "exec")  # TVMScript is Python's grammar


def test_the_readable_module_holds_no_weights(exported: Path, searched_run: Path) -> None:
    path = exported / "ir.py"
    done = run_qtool("export", searched_run, "--target", "tvm", "--emit-ir", path)
    assert done.code == 0, done.err
    text = path.read_text()
    assert max(map(len, text.splitlines())) < 20_000
    # The weights are 75,000 codes: written out they alone would be that long.
    lines = [line for line in text.splitlines() if line.count(",") > 1000]
    assert not lines
    path.unlink()


def test_only_the_readable_module(tiny: Path, tmp_path: Path) -> None:
    """Neither a compiler nor a linker for the CPU is needed to look at its code."""
    target = other_architecture()
    path = tmp_path / "arm.py"
    done = run_qtool("import", tiny / "tiny.onnx", "--emit-ir", path, "--mcpu", target.mcpu)
    assert done.code == 0, done.err
    assert path.read_text().startswith(f"# qtool {qtool.__version__}: {target.mcpu}")
    assert [p.name for p in tmp_path.iterdir()] == ["arm.py"]


def test_object_files_for_another_architecture(tiny: Path, tmp_path: Path) -> None:
    target, path = other_architecture(), tmp_path / "model.tar"
    done = run_qtool("import", tiny / "tiny.onnx", "-o", path, "--mcpu", target.mcpu)
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "model.json").read_text())
    assert content["target"]["triple"].startswith(target.architecture)
    assert content["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_both_files_or_none(tiny: Path, tmp_path: Path) -> None:
    library, described = tmp_path / "model.so", tmp_path / "model.json"
    described.write_text("precious")
    command = ("import", tiny / "tiny.onnx", "-o", library)
    refused(run_qtool(*command), "model.json exists already", "--force")
    assert described.read_text() == "precious" and not library.exists()
    described.unlink()
    described.mkdir()
    refused(run_qtool(*command, "--force"), "model.json is a directory")
    assert [p.name for p in tmp_path.iterdir()] == ["model.json"]
    described.rmdir()
    script = tmp_path / "model.py"
    script.write_text("precious")
    refused(run_qtool(*command, "--emit-ir", script), "model.py exists already")
    assert not library.exists() and script.read_text() == "precious"
    done = run_qtool(*command, "--emit-ir", script, "--force")
    assert done.code == 0, done.err
    names = ["model.json", "model.py", "model.so"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_a_failed_link_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, out = tmp_path / "c++", tmp_path / "out"
    script.write_text("#!/bin/sh\necho 'ld: no space left'\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    command = ("import", tiny / "tiny.onnx", "-o", out / "m.so", "--emit-ir", out / "m.py")
    done = run_qtool(*command)
    assert done.code == 2
    last = done.err.strip().splitlines()[-1]
    assert last == f"qtool: error: linking with {script} failed: ld: no space left"
    assert not out.exists()


# Options


def test_foreign_files_and_runs_take_the_same_options(
    tiny: Path, searched_run: Path, tmp_path: Path
) -> None:
    for number, source in enumerate(
        (("import", tiny / "tiny.onnx"), ("export", searched_run))
    ):
        library = tmp_path / f"{number}.so"
        extra = ("--target", "tvm", "--mcpu", "x86-64", "--emit-ir", tmp_path / f"{number}.py")
        if machine_features()[0] != "x86_64":
            extra = ("--target", "tvm", "--mcpu", "native", *extra[-2:])
        tune = ("--tune", 0, "--tune-cache", tmp_path / "tune.json")
        done = run_qtool(*source, "-o", library, *extra, *tune)
        assert done.code == 0, done.err
        assert read_seal(library)["cpu"]["mcpu"] == (
            host_target().mcpu if extra[3] == "native" else extra[3]
        )
        assert (tmp_path / f"{number}.py").exists() and library.with_suffix(".json").exists()
    x = images(2)
    expected = ReferenceRuntime(read_onnx(tiny / "model.onnx")).run(x)
    assert np.array_equal(TvmRuntime(tmp_path / "0.so").run(x), expected)


@pytest.mark.parametrize(
    ("option", "owners"),
    [
        (("--mcpu", "haswell"), "tvm or relay"),
        (("--tune", 3), "tvm"),
        (("--tune-cache", "c.json"), "tvm"),
        (("--emit-ir", "m.py"), "tvm"),
        (("--device", "cuda"), "tvm"),
    ],
)
def test_tvm_options_need_the_tvm_target(
    option: tuple[str, Any], owners: str, tiny: Path, searched_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "m.onnx"
    said = (f"{option[0]} needs --target {owners}, got --target onnx",)
    refused(run_qtool("import", tiny / "tiny.onnx", "-o", output, *option), *said)
    export = ("export", searched_run, "--target", "onnx", "-o", output)
    refused(run_qtool(*export, *option), *said)
    assert list(tmp_path.iterdir()) == []


def test_refusals_come_before_the_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("import", tiny / "tiny.onnx", "-o", tmp_path / "m.so")
    refused(run_qtool(*base[:2]), "missing option -o / --output")
    refused(run_qtool(*base, "--mcpu", "zenver4"), "unknown CPU 'zenver4'", "znver4")
    refused(run_qtool(*base, "--tune-cache", tmp_path / "c"), "--tune N")
    refused(run_qtool(*base, "--tune", -1), "-1")
    named = (*base[:3], tmp_path / "m.dll", "--target", "tvm")
    refused(run_qtool(*named), "m.dll", "shared library (.so)", "(.tar), got '.dll'")
    same = ("--emit-ir", tmp_path / "m.json")
    refused(run_qtool(*base, *same), "is also what the export itself writes")
    for variable in ("CXX", "CC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(run_qtool(*base), "none is on PATH", "install g++", "-o model.tar")
    cross = ("--mcpu", other_architecture().mcpu)
    refused(run_qtool(*base, *cross), "-linux-gnu-g++", "not on PATH", "set CXX_")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_tuning_cache_is_one_line(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "tune.json"
    cache.write_text('{"format": 1, "entr')
    command = ("import", tiny / "tiny.onnx", "-o", tmp_path / "m.so", "--tune", 2)
    result = run_qtool(*command, "--tune-cache", cache)
    refused(result, f"tuning cache {cache}", "not readable JSON", "delete it")
    assert [p.name for p in tmp_path.iterdir()] == ["tune.json"]


# Reports and users


def test_check_reports_the_module(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Latency(1.0, (1.0, 1.0), threads=1, runs=1)
    monkeypatch.setattr("qtool.checking.speed.measure", lambda *_, **__: measured)
    facts = read_seal(tiny / "model.so")["module"]
    facts |= {
        "arena_bytes": 1300, "largest_pair_bytes": 1000, "packed_weights": ["conv1"],
        "fallbacks": [{"layer": "deform", "operator": "Conv", "reason": "no kernel"}],
    }  # fmt: skip
    path = resealed(tiny / "model.so", tmp_path / "m.so", module=facts)
    result = run_qtool("check", path, "--json", tmp_path / "check.json")
    assert result.code == 0, result.err
    assert "tvm fallbacks" in result.out and "deform (Conv): no kernel" in result.out
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["tvm"]["peak_activation_bytes"] == 1300
    assert report["tvm"]["target"]["mcpu"] == host_target().mcpu
    table = dict(rows(CheckRecord.from_json(report)))
    assert table["tvm activations"] == (
        "1,300 bytes at most, 1.30 x the largest pair of live tensors"
    )
    assert table["tvm weights"] == "packed in memory: conv1"
    report["tvm"] |= {"packed_weights": [], "fallbacks": []}
    table = dict(rows(CheckRecord.from_json(report)))
    assert table["tvm fallbacks"] == "none: every operator has an integer kernel"
    assert table["tvm weights"] == "one byte each in memory"


def test_latency_is_measured_in_a_process_of_its_own(tiny: Path) -> None:
    measured = measure(tiny / "model.so", "tvm", (2, 5, 5))
    assert measured.median > 0 and measured.runs > 0 and measured.threads == 1


def test_export_never_reuses_a_loaded_path(tiny: Path, tmp_path: Path) -> None:
    """The loader hands out the library that it first saw under a name."""
    path, x = tmp_path / "model.so", images(4)
    shutil.copy(tiny / "model.so", path)
    before = TvmRuntime(path)
    first = before.run(x)
    changed = qdq()
    (weight,) = (t for t in changed.graph.initializer if t.name == "v")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((3, 3), 5, np.int8), "v"))
    onnx.save(changed, tmp_path / "other.onnx")
    done = run_qtool("import", tmp_path / "other.onnx", "-o", path, "--force")
    assert done.code == 0, done.err
    dialect, _ = read_foreign(tmp_path / "other.onnx")
    expected = ReferenceRuntime(read_program(dialect)).run(x)
    assert np.array_equal(TvmRuntime(path).run(x), expected)
    assert not np.array_equal(expected, first)
    assert np.array_equal(before.run(x), first)


WITHOUT_QTOOL = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("qtool", "passes", "runtimes", "torch", "onnx"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"qtool", "passes", "runtimes"} & set(sys.modules)
"""


def test_five_lines_of_plain_tvm(tiny: Path, tmp_path: Path) -> None:
    x = images(1)
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-c", WITHOUT_QTOOL, EXAMPLE, tiny / "model.so", "x.npy"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    expected = ReferenceRuntime(read_onnx(tiny / "model.onnx")).run(x)
    assert np.array_equal(np.array(json.loads(done.stdout), np.float32), expected)
    tree = [line for line in EXAMPLE.read_text().split('"""')[2].splitlines() if line]
    assert sum(not line.startswith(("import", "from")) for line in tree) == 5
