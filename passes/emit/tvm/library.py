"""IRModule -> native code for one CPU: a shared library, or its object files.

Linking needs a C++ compiler: for this machine ``CXX``, ``CC`` or the first of g++, gcc, ...
on PATH; for another architecture what ``CXX_<triple>`` names (CXX_aarch64_linux_gnu), or
``<triple>-g++``. The object files, in a tar archive, need none: they are linked elsewhere, by
``c++ -shared -fPIC -o model.so *.o``.
"""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvm.support import cc

from passes.emit.tvm.cpu_target import CpuTarget, host_triple
from passes.emit.tvm.lowering_pipeline import compile_module
from qtool.core.errors import UserError

LIBRARY, OBJECTS = ".so", ".tar"
_STRIP = "-Wl,-S"


def find_linker(target: CpuTarget) -> str:
    """Return the compiler that links for `target`.

    Raises:
        UserError: there is none on PATH; says what to install or to set.
    """
    if target.architecture == host_triple().partition("-")[0]:
        return _native_linker()
    base = f"{target.architecture}-linux-gnu"
    variable = f"CXX_{base.replace('-', '_')}"
    chosen = os.environ.get(variable) or f"{base}-g++"
    if shutil.which(chosen) is None:
        raise UserError(
            f"a module for {target.mcpu} ({target.architecture}) is linked by {chosen}, which "
            f"is not on PATH; install it, set {variable}, or write the object files "
            f"(-o model{OBJECTS})"
        )
    return chosen


def _native_linker() -> str:
    found: str | None = cc.get_cc()
    if found is None:
        raise UserError(
            "a TVM module is linked by a C++ compiler, and none is on PATH; install g++ or "
            f"clang++, set CXX, or write the object files (-o model{OBJECTS})"
        )
    if shutil.which(found) is None:
        raise UserError(
            f"a TVM module is linked by {found} (CXX or CC), which is not on PATH; "
            f"install or unset it, or write the object files (-o model{OBJECTS})"
        )
    return found


def compile_library(
    module: Any,
    target: CpuTarget,
    suffix: str = LIBRARY,
    progress: Callable[[str], None] | None = None,
    strip: bool = False,
) -> bytes:
    """Compile an IRModule and return the shared library, or an archive of its objects.

    Args:
        module: of `tvm_module`.
        target: the CPU.
        suffix: `LIBRARY` or `OBJECTS`.
        progress: is told what is going on.
        strip: leave debug information out of a library.

    Raises:
        UserError: no compiler to link with, or linking fails.
    """
    note = progress or (lambda text: None)
    linker = find_linker(target) if suffix == LIBRARY else ""
    note(f"compiling for {target.mcpu} ({target.isa})")
    executable = compile_module(module, target.llvm())
    if suffix == OBJECTS:
        with tempfile.TemporaryDirectory(prefix="qtool-") as folder:
            path = Path(folder) / f"model{suffix}"
            executable.export_library(str(path), fcompile=_archive)
            return path.read_bytes()
    note(f"linking with {linker}")
    return link(executable, linker, options=[_STRIP] if strip else [])


def link(module: Any, linker: str, **options: Any) -> bytes:
    """Return the shared library of a compiled module.

    Args:
        module: of TVM, or its executable.
        linker: of `find_linker`.
        options: of its ``export_library``.

    Raises:
        UserError: linking fails.
    """
    with tempfile.TemporaryDirectory(prefix="qtool-") as folder:
        path = Path(folder) / f"model{LIBRARY}"
        try:
            module.export_library(str(path), cc=linker, **options)
        except (RuntimeError, OSError) as error:
            raise UserError(f"linking with {linker} failed: {_reason(error)}") from None
        return path.read_bytes()


def _archive(output: str, objects: Sequence[str], **_: Any) -> None:
    """Put object files into a tar archive, without times and owners: equal code, equal bytes.

    TVM's own calls the program tar, which not every machine has.
    """
    with tarfile.open(output, "w") as archive:
        for path in sorted(map(Path, objects)):
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            with path.open("rb") as stream:
                archive.addfile(member, stream)


def _reason(error: Exception) -> str:
    """Return the linker's first line of complaint: TVM puts its own before and after."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Compilation", "Command"))]
    return said[0] if said else type(error).__name__
