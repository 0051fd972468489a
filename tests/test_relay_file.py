"""model.relay.json, the environment and its process: refusals, without that environment."""

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_qtool
from test_cli_errors import refused

from passes.emit.relay.target import RelayTarget
from qtool.core.errors import UserError
from qtool.core.relay import environment
from qtool.core.relay.environment import PACKAGES, interpreter, is_made, make
from qtool.core.relay.process import Process
from qtool.core.relay.relay_file import RelayFile, read_relay
from qtool.core.setups import SETUPS, Setup
from runtimes.registry import RUNTIMES

FACTS = {
    "digest": "0" * 16, "dataset": None, "frames": 0, "classes": [], "input_shape": [1, 4, 4],
    "input_kind": "float32", "input_name": "x", "output_scale": 1.0, "output_zero_point": 0,
    "output_kind": "uint8", "tensors": ["t0"], "layers": {}, "layer_macs": {}, "macs": 0,
    "bops": 0, "weight_bytes": 0, "islands": [], "mcpu": None, "differs": None,
}  # fmt: skip
FILE = RelayFile(FACTS, {"main": b'{"root": 1}', "trace": b'{"root": 2}'}, b"\x00\x01\xff")
ABSENT = "Relay needs TVM 0.19 in an environment of its own, which is not there: "


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("QTOOL_CACHE", str(folder))
    return folder


def pretend(cache: Path, python: str, packages: dict[str, str] = PACKAGES) -> Path:
    """Make an environment in which `python` stands for its interpreter."""
    (cache / "relay" / "bin").mkdir(parents=True)
    (cache / "relay" / "qtool.json").write_text(json.dumps(packages))
    interpreter(cache / "relay").symlink_to(python)
    return cache / "relay"


# The file


def test_a_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "m.relay.json"
    path.write_bytes(FILE.to_bytes())
    read = read_relay(path)
    assert (read.facts, read.parameters) == (FACTS, FILE.parameters)
    assert {name: json.loads(text) for name, text in read.modules.items()} == {
        "main": {"root": 1}, "trace": {"root": 2},
    }  # fmt: skip
    (described,) = RelayTarget.read(path)
    assert described.facts == FACTS and described.module is None
    content = json.loads(path.read_text())
    assert base64.b64decode(content["parameters"]) == FILE.parameters


def changed(change: Callable[[dict[str, object]], object]) -> bytes:
    content = json.loads(FILE.to_bytes())
    change(content)
    return json.dumps(content).encode()


DAMAGED = {
    "not readable JSON": FILE.to_bytes()[:-40],
    "not a Relay file of qtool, or of another version": changed(lambda c: c.update(format=2)),
    "got a JSON list": b"[]",
    "expected facts, main, trace, parameters: damaged": changed(lambda c: c.pop("trace")),
    "its checksum does not fit": changed(lambda c: c.update(main={"root": 7})),
}


@pytest.mark.parametrize("said", DAMAGED)
def test_a_damaged_file_is_one_line(tmp_path: Path, said: str) -> None:
    path = tmp_path / "m.relay.json"
    path.write_bytes(DAMAGED[said])
    refused(run_qtool("check", path), said, str(path))
    refused(run_qtool("bops", path), said)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused(run_qtool("check", tmp_path / "m.relay.json"), "does not exist")


def test_parameters_that_are_not_base64(tmp_path: Path) -> None:
    from qtool.core.relay import relay_file

    content = json.loads(FILE.to_bytes()) | {"parameters": "!!"}
    parts = {key: content[key] for key in ("facts", "main", "trace", "parameters")}
    content["sha256"] = relay_file._digest(parts)
    (tmp_path / "m.relay.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="its parameters are not base64: damaged"):
        read_relay(tmp_path / "m.relay.json")


@pytest.mark.parametrize("name", FACTS)
def test_facts_of_another_kind(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.relay.json"
    wrong = [1] if isinstance(FACTS[name], dict) else {"a": 1}
    path.write_bytes(RelayFile(FACTS | {name: wrong}, FILE.modules, b"").to_bytes())
    with pytest.raises(UserError, match=f"its facts say nothing of '{name}': damaged"):
        read_relay(path)


def test_json_that_is_too_deep_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.relay.json"
    path.write_text("[" * 100_000)
    refused(run_qtool("check", path), "is not readable JSON")


def test_what_an_export_writes(tmp_path: Path) -> None:
    target, path = RelayTarget(), tmp_path / "a.b" / "model.relay.json"
    assert target.files(path) == [path, tmp_path / "a.b" / "model.relay"]
    for name in ("model.json", "model.relay", "model"):
        with pytest.raises(UserError, match=f"{name}: --target relay writes a file that ends"):
            target.files(Path(name))
    with pytest.raises(UserError, match="missing option -o"):
        target.check(None, force=True)
    path.parent.mkdir()
    path.with_suffix("").touch()
    with pytest.raises(UserError, match=r"model\.relay exists already"):
        target.check(path, force=False)
    with pytest.raises(UserError, match="--target relay writes one pair of bit-widths, got 2"):
        target.pair_files(("w4a4", "w8a8"), tmp_path)


# No environment


def test_without_the_environment_the_command_is_named(tiny: Path, tmp_path: Path) -> None:
    said = f"{ABSENT}qtool setup relay"
    out = tmp_path / "m.relay.json"
    refused(run_qtool("import", tiny / "tiny.onnx", "-o", out), said)
    assert not out.exists() and not (tmp_path / "m.relay").exists()
    out.write_bytes(FILE.to_bytes())
    refused(run_qtool("check", out, "--runtime", "relay"), said)
    with pytest.raises(UserError, match=ABSENT):
        RUNTIMES["relay"].require()
    listed = run_qtool("setup").out
    assert listed.startswith("relay TVM 0.19") and listed.endswith(": not made\n")


def test_other_files_are_checked_without_it(tiny: Path) -> None:
    done = run_qtool("check", tiny / "model.onnx", "--json", tiny / "check.json", "--force")
    assert done.code == 0, done.err
    assert set(json.loads((tiny / "check.json").read_text())["parity"]) == {"ort"}


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.name != ".relay.lock"]


def test_halves_and_other_versions_are_none(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = pretend(cache, sys.executable)
    with monkeypatch.context() as patch:
        patch.setattr(environment, "_works", lambda *_: True)
        assert is_made() and make(None, lambda _: None) == place
    assert run_qtool("setup").out.endswith(": made\n")
    (place / "qtool.json").write_text("{}")
    assert not is_made()
    with pytest.raises(UserError, match=r"which is of other versions: qtool setup relay"):
        environment.require_relay()
    (place / "qtool.json").write_text('{"xtc')
    assert not is_made()
    (place / "qtool.json").unlink()
    assert not is_made()
    (place / "qtool.json").write_text(json.dumps(PACKAGES))
    interpreter(place).unlink()
    interpreter(place).symlink_to(place / "python that was removed")
    assert not is_made()


def test_an_environment_is_made_whole_or_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands are recorded, but for the last: nothing is there before it succeeds."""
    commands, fails = list[list[str]](), True

    def run(command: list[str]) -> str:
        commands.append(command)
        if command[-3:-1] == ["-m", "venv"]:
            Path(command[-1], "bin").mkdir(parents=True)
            interpreter(Path(command[-1])).symlink_to(sys.executable)
        if command[-1] == "from tvm import relay" and fails:
            raise UserError("no relay")
        return "3.11"

    monkeypatch.setattr(environment, "_run", run)
    said: list[str] = []
    with pytest.raises(UserError, match="no relay"):
        make(Path("python3.11"), said.append)
    assert not is_made() and kept(cache) == []
    fails = False
    stale, killed = cache / "relay" / "lib", cache / ".relay-abc" / "relay"
    stale.mkdir(parents=True)
    killed.mkdir(parents=True)
    place = make(Path("python3.11"), said.append)
    assert is_made() and not stale.exists() and kept(cache) == [place]
    assert len(said) == 2 and f"making {place}: TVM 0.19 with Relay" in said[0]
    pinned = [f"{name}=={version}" for name, version in PACKAGES.items()]
    assert commands[-2][-3:] == pinned and commands[-3][0] == "python3.11"
    done = len(commands)
    assert make(None, said.append) == place and len(commands) == done + 1
    fails = True
    with pytest.raises(UserError, match="no relay"):
        make(Path("python3.11"), said.append)
    assert f"{place} is broken (no relay)" in said


def test_what_fails_while_it_is_made(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run_qtool("setup", "relay", "--python", tmp_path / "none"), "no such program")
    refused(run_qtool("setup", "relay", "--python", "/bin/ls"), "/bin/ls is no Python")
    other = tmp_path / "python2"
    other.write_text("#!/bin/sh\necho 2.7\n")
    other.chmod(0o755)
    wrong = run_qtool("setup", "relay", "--python", other)
    refused(wrong, f"--python {other}: Python 2.7; Relay's packages are for 3.11")
    refused(run_qtool("setup", "--python", other), "--python needs a name: relay")
    monkeypatch.setattr(environment, "PYTHON", "3.99")
    refused(
        run_qtool("setup", "relay"), "for Python 3.99, this is 3.", "name one with --python"
    )
    assert run_qtool("setup", "rely").code == 2
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho noise; echo ERROR: no such package >&2; exit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match=r"broken -m x failed: ERROR: no such package$"):
        environment._run([str(broken), "-m", "x"])
    assert kept(cache) == []


def test_setups_have_what_makes_them() -> None:
    for entry in SETUPS.values():
        assert isinstance(entry, Setup) and entry.summary and entry.version
        assert not entry.is_made()


# A process that does not work


def test_a_process_that_ends_says_why(cache: Path) -> None:
    pretend(cache, sys.executable)  # whose TVM, if any, has no Relay
    with pytest.raises(UserError, match=r"Relay's process ended with 1: \w+Error: ") as caught:
        with Process() as process:
            process.ask("emit")
    assert "\n" not in str(caught.value)


def test_a_process_that_is_killed_says_so(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -11 $$\n")
    script.chmod(0o755)
    pretend(cache, str(script))
    with pytest.raises(UserError, match="Relay's process ended with -11: it said nothing"):
        Process().ask("emit")
