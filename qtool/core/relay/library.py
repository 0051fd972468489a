"""A Relay module in a worker, compiled: from the cache, or built and kept there.

Building takes up to a minute, so that machine code is kept, sealed (`qtool.core.sealed`),
under the hash of all that it depends on. The cache holds the last libraries only.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtool.core.cache import cache_folder
from qtool.core.cpu_features import GENERATED
from qtool.core.errors import UserError, listed, unknown_name
from qtool.core.files import write_bytes
from qtool.core.relay.environment import PACKAGES
from qtool.core.relay.process import Process
from qtool.core.relay.relay_file import RelayFile
from qtool.core.sealed import seal, unseal

# All that code may use by itself: what a worker is asked whether this machine has.
FEATURES = [feature for features in GENERATED.values() for feature in features]
_KEPT = 24
_SUFFIX = ".relay.so"


def open_module(
    process: Process, file: RelayFile, name: str, note: Callable[[str], None] | None = None
) -> list[str]:
    """Compile or load a module of `file` in `process`, for the CPU that the file names.

    Args:
        process: the worker.
        file: what a model.relay.json holds.
        name: of the module.
        note: is told what is going on.

    Returns:
        Kernels of it whose results are floats.

    Raises:
        UserError: an unknown CPU, or one that this machine is not.
    """
    target = cpu_target(process, file.facts["mcpu"])
    path = _path(file, name, target)
    with tempfile.TemporaryDirectory(prefix="qtool-relay-") as folder:
        fresh = Path(folder) / "model.so"
        if (code := kept_code(file, name, target)) is not None:
            fresh.write_bytes(code)
            answer, _ = process.ask("load", path=str(fresh))
            return list(answer["floats"])
        if note:
            note(f"compiling Relay's {name} for {target['mcpu']}")
        blobs = (file.modules[name], file.parameters)
        answer, _ = process.ask("build", blobs, target=target)
        if process.ask("save", path=str(fresh))[0]["saved"]:
            write_bytes(path, seal(fresh.read_bytes(), {}))
            _forget_oldest(path.parent)
    return list(answer["floats"])


def cpu_target(process: Process, mcpu: str | None) -> dict[str, Any]:
    """Return TVM's target for a CPU, None or native for this machine's.

    Raises:
        UserError: no such CPU, or one that has instructions which this machine lacks.
    """
    named = None if mcpu == "native" else mcpu
    answer, _ = process.ask("target", mcpu=named, generated=FEATURES)
    if "unknown" in answer:
        error = unknown_name("CPU", answer["unknown"], answer["known"])
        raise UserError(f"CPU of a Relay module: {error}; native is this machine's")
    if answer["missing"]:
        raise UserError(
            f"a Relay module for {named} needs {listed(answer['missing'])}, which this "
            "machine lacks; export it without --mcpu: it is compiled for what runs it"
        )
    target: dict[str, Any] = answer["target"]
    return target


def _path(file: RelayFile, name: str, target: dict[str, Any]) -> Path:
    """Return where the cache keeps a module's library."""
    state = hashlib.sha256(json.dumps([PACKAGES, target]).encode())
    # However it is spaced: TVM writes it so, and model.relay.json otherwise.
    state.update(json.dumps(json.loads(file.modules[name])).encode())
    state.update(file.parameters)
    return cache_folder() / f"{state.hexdigest()[:24]}{_SUFFIX}"


def kept_code(file: RelayFile, name: str, target: dict[str, Any]) -> bytes | None:
    """Return the library that the cache has of a module; None where it has no whole one."""
    path = _path(file, name, target)
    try:
        code, _ = unseal(path.read_bytes(), str(path))
    except (FileNotFoundError, UserError):
        return None
    path.touch()
    return code


def _forget_oldest(folder: Path) -> None:
    """Remove all libraries but the last ones used."""
    known = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in known[_KEPT:]:
        path.unlink(missing_ok=True)
