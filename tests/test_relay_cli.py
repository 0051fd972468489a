"""The Relay target and runtime as a user has them: export, import, check, the cache."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_qtool
from test_cli_errors import refused

from passes.emit.relay.target import RelayTarget
from passes.pipelines import lower
from qtool.core.cache import cache_folder
from qtool.core.dialect import read_program
from qtool.core.errors import UserError
from qtool.core.relay import library
from qtool.core.relay.environment import require_relay
from qtool.core.relay.process import Process
from qtool.core.relay.relay_file import MAIN, read_relay
from qtool.core.selection import Selection
from qtool.export.trace import trace
from qtool.models import model_factory
from qtool.nn.control import calibrate
from qtool.nn.prepare.prepare import QuantSpec, prepare
from runtimes.base import Artifact
from runtimes.latency import measure
from runtimes.reference import ReferenceRuntime
from runtimes.registry import RUNTIMES
from runtimes.relay import RelayRuntime

pytestmark = pytest.mark.relay
ROOT = Path(__file__).parent.parent
SHAPE = (2, 5, 5)


@pytest.fixture(scope="module")
def relay(tiny: Path) -> Path:
    """model.relay.json and model.relay beside the other files of the tiny network."""
    done = run_qtool("import", tiny / "tiny.onnx", "-o", tiny / "model.relay.json")
    assert done.code == 0, done.err
    named = [line.partition(": ")[0] for line in done.out.splitlines() if ": " in line]
    assert named[-2:] == [str(tiny / "model.relay.json"), str(tiny / "model.relay")]
    return tiny / "model.relay.json"


def test_it_is_checked_like_any_other(relay: Path, tmp_path: Path) -> None:
    files = [relay.with_name(name) for name in ("model.onnx", "model.so")]
    report = tmp_path / "check.json"
    done = run_qtool("check", *files, relay, "--require-parity", "--json", report)
    assert done.code == 0, done.err
    content = json.loads(report.read_text())
    parity = content["parity"]
    assert set(parity) == {"ort", "tvm", "relay"}
    found = parity["relay"]
    assert found["mismatched"] == 0 and found["required"]
    assert found["compared"] == parity["ort"]["compared"]
    assert content["float_ops"]["relay"] == {} and content["latency_ms"]["relay"]["median"] > 0
    assert content["files"][str(relay)] == relay.stat().st_size
    assert json.loads(run_qtool("bops", relay, "--json").out)["bops"] == content["bops"]


def test_qnn_is_counted_and_not_required(relay: Path, tmp_path: Path) -> None:
    path, report = tmp_path / "q.relay.json", tmp_path / "check.json"
    made = run_qtool("import", relay.with_name("tiny.onnx"), "-o", path, "--relay-qnn")
    assert made.code == 0, made.err
    assert "qnn.conv2d" in path.with_suffix("").read_text()
    command = ("check", relay.with_name("model.onnx"), path, "--require-parity")
    done = run_qtool(*command, "--json", report)
    assert done.code == 0, done.err
    found = json.loads(report.read_text())["parity"]["relay"]
    assert found["required"] is False and 0 < found["mismatched"] < found["compared"]
    assert found["reason"] == "relay: qnn.* of TVM rounds in its own way (docs/relay.md)"


def test_options_of_other_targets(relay: Path, tmp_path: Path) -> None:
    source, out = relay.with_name("tiny.onnx"), tmp_path / "m.relay.json"
    command = ("import", source, "-o", out)
    refused(run_qtool(*command, "--tune", 2), "--tune needs --target tvm, got --target relay")
    wrong = run_qtool("import", source, "-o", tmp_path / "m.onnx", "--relay-qnn")
    refused(wrong, "--relay-qnn needs --target relay, got --target onnx")
    refused(run_qtool(*command, "--mcpu", "haswel"), "unknown CPU 'haswel'", "haswell")
    refused(run_qtool(*command, "--mcpu", "sapphirerapids-x"), "unknown CPU")
    assert [*tmp_path.iterdir()] == []


def test_a_cpu_of_its_own(relay: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.relay.json"
    done = run_qtool("import", relay.with_name("tiny.onnx"), "-o", out, "--mcpu", "x86-64")
    assert done.code == 0, done.err
    assert read_relay(out).facts["mcpu"] == "x86-64"
    RUNTIMES["relay"].require(Artifact(out, read_relay(out).facts))
    x = np.random.default_rng(0).random((2, *SHAPE), np.float32)
    assert np.array_equal(RelayRuntime(out).run(x), RelayRuntime(relay).run(x))
    with pytest.raises(UserError, match="unknown CPU 'z80'"):
        RUNTIMES["relay"].require(Artifact(out, {"mcpu": "z80"}))


def test_images_that_do_not_fit(relay: Path) -> None:
    runtime, x = RelayRuntime(relay), np.zeros((2, *SHAPE), np.float32)
    for wrong in (x[:0], x[:, :1], x.astype(np.uint8), x[0]):
        for call in (runtime.run, runtime.intermediates):
            with pytest.raises(UserError, match="compiled for images of 2x5x5 float32, got"):
                call(wrong)
    assert np.array_equal(runtime.run(x)[0], runtime.run(x[:1])[0])


def test_latency_is_measured_in_the_process(relay: Path) -> None:
    found = measure(relay, "relay", SHAPE, threads=2)
    assert 0 < found.quartiles[0] <= found.median <= found.quartiles[1] and found.runs > 10


def test_tvm_alone_runs_the_file(relay: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((1, *SHAPE), np.float32)
    np.save(tmp_path / "x.npy", x)
    command = [str(require_relay()), ROOT / "examples" / "plain_relay.py", relay]
    variables = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "x.npy")], capture_output=True, text=True,
        cwd=tmp_path, env=variables | {"TOPHUB_LOCATION": "NONE"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert json.loads(done.stdout) == RelayRuntime(relay).run(x).tolist()


# The cache


@pytest.fixture
def cache(relay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that has Relay's environment, and no libraries."""
    environment, folder = cache_folder() / "relay", tmp_path / "cache"
    monkeypatch.setenv("QTOOL_CACHE", str(folder))
    cache_folder()
    (folder / "relay").symlink_to(environment)
    return folder


@pytest.mark.usefixtures("cache")
def test_what_an_export_compiled_is_used(relay: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.relay.json"
    command = ("import", relay.with_name("tiny.onnx"), "-o", out, "--mcpu", "x86-64")
    assert "compiling Relay's main for x86-64" in run_qtool(*command).err
    assert opened(out) == []


def opened(path: Path) -> list[str]:
    """What is said while the module of a file is opened."""
    said: list[str] = []
    with Process() as process:
        library.open_module(process, read_relay(path), MAIN, said.append)
    return said


def test_code_is_kept_and_damaged_code_is_made_anew(
    relay: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(opened(relay)) == 1 and opened(relay) == []
    (kept,) = cache.glob("*.relay.so")
    kept.write_bytes(kept.read_bytes()[:5000])
    assert len(opened(relay)) == 1 and opened(relay) == []
    monkeypatch.setattr(library, "_KEPT", 1)
    os.utime(kept, (1, 1))
    with Process() as process:
        library.open_module(process, read_relay(relay), "trace")
    (last,) = cache.glob("*.relay.so")
    assert last != kept


def test_without_a_linker_it_is_compiled_every_time(
    relay: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    x = np.zeros((1, *SHAPE), np.float32)
    for _ in range(2):
        assert len(opened(relay)) == 1
    assert RelayRuntime(relay).run(x).shape == (1, 3)
    assert not [*cache.glob("*.relay.so")]


# Networks of the zoo, and a trained one


def test_a_trained_and_searched_run(searched_run: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "m.onnx", tmp_path / "m.relay.json"]
    for target, path in zip(("onnx", "relay"), paths, strict=True):
        done = run_qtool("export", searched_run, "--target", target, "-o", path)
        assert done.code == 0, done.err
        assert "witness: 0 of" in done.err
    report = tmp_path / "check.json"
    names = ("--runtime", "reference,relay")
    done = run_qtool("check", *paths, *names, "--require-parity", "--json", report)
    assert done.code == 0, done.err
    content = json.loads(report.read_text())
    assert content["parity"]["relay"]["compared"] > 2_000_000
    assert content["accuracy"]["relay"] == content["accuracy"]["reference"]


def zoo(name: str, size: int, path: Path) -> None:
    """Fail unless a network of the zoo, 4 bits with 8-bit ends, is exact in Relay."""
    torch.manual_seed(0)
    model = prepare(model_factory(name)(), QuantSpec((4,), 4), (3, size, size)).eval()
    x = torch.rand(2, 3, size, size)
    calibrate(model, x)
    dialect = lower(trace(model, (3, size, size)), Selection())
    RelayTarget().write(dialect, path)
    runtime, reference = RelayRuntime(path), ReferenceRuntime(read_program(dialect))
    expected, got = reference.intermediates(x.numpy()), runtime.intermediates(x.numpy())
    assert list(got) == list(expected)
    assert {n: int((got[n] != codes).sum()) for n, codes in expected.items()} == dict.fromkeys(
        expected, 0
    )
    assert np.array_equal(runtime.run(x.numpy()), reference.run(x.numpy()))
    assert runtime.float_ops() == {}


ZOO = ("resnet18", "mobilenet_v2")


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo(name: str, tmp_path: Path) -> None:
    zoo(name, 64, tmp_path / "m.relay.json")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo_at_full_size(name: str, tmp_path: Path) -> None:
    zoo(name, 224, tmp_path / "m.relay.json")
