"""C++ source -> shared library, once for each source, compiler and machine.

Libraries live in `qtool.core.cache`. Compiling takes about a second.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from qtool.core.cache import cache_folder
from qtool.core.files import atomic_path

# No fused multiply-adds and no fast-math: the same floats as torch's operators.
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-fPIC", "-fopenmp",
)  # fmt: skip
_TIMEOUT_S = 120


class NoCompiler(Exception):
    """There is no usable C++ compiler; the message says why."""


def compiled(source: Path) -> Path:
    """Return the shared library made of `source`, from the cache if it is there.

    It is not linked to an OpenMP runtime: its symbols are found in that of torch, which must
    have been imported, so that there is one pool of threads.

    Raises:
        NoCompiler: no compiler, or it fails.
        UserError: the cache folder cannot be used.
    """
    compiler = find_compiler()
    folder = cache_folder()
    library = folder / f"{source.stem}-{_key(source, compiler)}.so"
    if not library.exists():
        with atomic_path(library) as temporary:
            _compile(compiler, source, temporary)
    return library


def find_compiler() -> str:
    """Return the path of the C++ compiler: ``$CXX``, else c++, g++ or clang++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        if path := shutil.which(name):
            return path
    raise NoCompiler(f"no C++ compiler ({', '.join(names)}) on this machine")


def _key(source: Path, compiler: str) -> str:
    """Return the hash of all that the library depends on."""
    state = hashlib.sha256(source.read_bytes())
    known = os.stat(compiler)
    for part in (*FLAGS, compiler, known.st_size, known.st_mtime_ns, _cpu()):
        state.update(f"{part}\0".encode())
    return state.hexdigest()[:24]


def _cpu() -> str:
    """Return what ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(compiler: str, source: Path, output: Path) -> None:
    objects = output.with_suffix(".o")
    commands = (
        [compiler, *FLAGS, "-c", str(source), "-o", str(objects)],
        [compiler, "-shared", str(objects), "-o", str(output)],
    )
    try:
        for command in commands:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                reason = next((line for line in lines if "error" in line), lines[0])
                raise NoCompiler(f"{compiler} failed: {reason}")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"{compiler} failed: {error}") from None
    finally:
        objects.unlink(missing_ok=True)
