"""A module of another CPU is refused before it is loaded: SIGILL could not be caught."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import run_qtool
from test_cli_errors import refused
from test_cpu_target import other_architecture
from tiny_files import images, resealed

from passes.emit.tvm.cpu_target import host_target
from qtool.core.sealed import read_seal, unseal
from qtool.export.read import read_onnx
from runtimes.host_cpu import machine_features
from runtimes.reference import ReferenceRuntime
from runtimes.tvm import TvmRuntime


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test as soon as native code is loaded."""

    def load(path: str) -> None:
        raise AssertionError(f"{path} was loaded")

    monkeypatch.setattr("tvm.runtime.load_module", load)


@pytest.mark.usefixtures("unloadable")
def test_a_module_for_a_bigger_cpu_is_not_loaded(tiny: Path, tmp_path: Path) -> None:
    cpu = read_seal(tiny / "model.so")["cpu"]
    features = [*cpu["features"], "amx-int8-of-tomorrow"]
    changed = cpu | {"mcpu": "sapphirerapids", "features": features}
    path = resealed(tiny / "model.so", tmp_path / "big.so", cpu=changed)
    said = (
        "big.so: compiled for sapphirerapids and needs amx-int8-of-tomorrow, which this",
        "machine lacks; export it for this machine with qtool export", "--mcpu native",
    )  # fmt: skip
    refused(run_qtool("check", path), *said)
    # Before the other runtimes' minutes, too.
    refused(run_qtool("check", tiny / "model.onnx", path), *said)


@pytest.mark.usefixtures("unloadable")
def test_many_missing_features_are_counted(tiny: Path, tmp_path: Path) -> None:
    cpu = read_seal(tiny / "model.so")["cpu"]
    features = [f"vector{n}" for n in range(6)]
    path = resealed(tiny / "model.so", tmp_path / "m.so", cpu=cpu | {"features": features})
    refused(run_qtool("check", path), "vector0, vector1, vector2, vector3 and 2 more")


@pytest.mark.usefixtures("unloadable")
def test_a_module_for_another_architecture_is_not_loaded(tiny: Path, tmp_path: Path) -> None:
    other, here = other_architecture(), host_target()
    path = resealed(tiny / "model.so", tmp_path / "arm.so", cpu=other.to_json())
    said = f"compiled for {other.mcpu} ({other.architecture}), and this machine is"
    refused(run_qtool("check", path), said, here.architecture, "--mcpu native")


@pytest.mark.usefixtures("unloadable")
def test_a_seal_that_names_no_cpu_is_not_loaded(tiny: Path, tmp_path: Path) -> None:
    for cpu in (None, "znver4", {"mcpu": "znver4"}, {"triple": "x86_64", "features": "avx2"}):
        path = resealed(tiny / "model.so", tmp_path / "old.so", cpu=cpu)
        refused(run_qtool("check", path), "old.so", "export")


def test_metadata_that_is_none(tiny: Path, tmp_path: Path) -> None:
    library, _ = unseal((tiny / "model.so").read_bytes(), "model")
    path = tmp_path / "m.so"
    for text in (b"[]", b"{", b"\xff"):
        body = library + text + len(text).to_bytes(8, "little")
        path.write_bytes(body + hashlib.sha256(body).digest() + b"QTOOLSO1")
        refused(run_qtool("check", path), "m.so: its metadata is n", "not written by qtool")


def test_this_machine_has_what_its_own_modules_need() -> None:
    architecture, features = machine_features()
    target = host_target()
    assert architecture == target.architecture and set(target.features) <= features


def test_an_honest_module_for_a_smaller_cpu_runs(tiny: Path, tmp_path: Path) -> None:
    if machine_features()[0] != "x86_64":
        pytest.skip("x86-64 modules do not run on this machine")
    path = tmp_path / "m.so"
    done = run_qtool("import", tiny / "tiny.onnx", "-o", path, "--mcpu", "x86-64")
    assert done.code == 0, done.err
    x = images(2)
    expected = ReferenceRuntime(read_onnx(tiny / "model.onnx")).run(x)
    assert np.array_equal(TvmRuntime(path).run(x), expected)
