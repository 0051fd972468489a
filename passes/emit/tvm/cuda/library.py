"""IRModule -> a shared library with the machine code of a GPU in it.

TVM's wheel writes CUDA source without a GPU, and would compile it where the library is loaded,
in its own way (`passes.emit.tvm.cuda.nvrtc`). So the source is compiled here, and what TVM
packs into the library is rewritten: a device module's bytes are

    format, a string: "cuda" | functions and their launch parameters | content, a string

and say "cubin" and hold machine code afterwards. Strings have their length in front, 8 bytes
little endian. TVM's loader hands a cubin to the driver as it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm

from passes.emit.tvm.cuda.gpu_target import GpuTarget
from passes.emit.tvm.cuda.lowering_pipeline import compile_module
from passes.emit.tvm.cuda.nvrtc import DeviceCode, compile_source
from passes.emit.tvm.library import find_linker, link

_KIND, _COMPILED = "cuda", "cubin"
_SYMBOL = "__tvm_ffi__library_bin"
_BYTE = re.compile(r"0x[0-9a-fA-F]{2}")


@dataclass(frozen=True)
class CudaLibrary:
    """A shared library, and what is in it.

    Args:
        data: the library.
        source: CUDA, of all kernels.
        code: what it was compiled to.
        arena_bytes: memory of activations, as planned.
    """

    data: bytes
    source: str
    code: DeviceCode
    arena_bytes: int


def compile_cuda(
    module: Any, target: GpuTarget, progress: Callable[[str], None] | None = None
) -> CudaLibrary:
    """Compile an IRModule of `passes.emit.tvm.cuda.module`.

    Args:
        module: the module.
        target: the GPU.
        progress: is told what is going on.

    Raises:
        UserError: no compiler to link with, linking fails, no NVRTC.
    """
    note = progress or (lambda text: None)
    linker = find_linker(target.host)
    note(f"writing CUDA for {target.arch}")
    wanted = tvm.target.Target(target.tvm(), host=target.host.llvm())
    executable, arena_bytes = compile_module(module, wanted)
    (device,) = device_modules(executable.mod)
    source = str(device.inspect_source(""))
    note(f"compiling {source.count('__launch_bounds__') // 2} kernels with NVRTC")
    code = compile_source(source, target.arch)

    def pack(module: Any, system: bool, prefix: str, folder: str) -> str:
        return str(_packed(module, system, prefix, Path(folder), source, code.cubin))

    note(f"linking with {linker}")
    data = link(executable.mod, linker, fpack_imports=pack)
    return CudaLibrary(data, source, code, arena_bytes)


def device_modules(module: Any) -> list[Any]:
    """Return the modules of device code that a module imports, directly or not."""
    found = []
    for imported in module.imports:
        found += [imported] if imported.kind == _KIND else device_modules(imported)
    return found


def _packed(
    module: Any, system: bool, prefix: str, folder: Path, source: str, cubin: bytes
) -> Path:
    """Write an assembler file of what `module` imports, machine code instead of source."""
    text = str(tvm.get_global_func("runtime.ModulePackImportsToC")(module, system, prefix))
    body = text[text.index("{", text.index(f"{_SYMBOL}[")) : text.rindex("}")]
    packed = bytes.fromhex("".join(byte[2:] for byte in _BYTE.findall(body)))
    content = folder / "imports.bin"
    content.write_bytes(compiled_imports(packed, source.encode(), cubin))
    assembly = folder / "imports.S"
    assembly.write_text(
        f".section .rodata\n.balign 64\n.globl {prefix}{_SYMBOL}\n{prefix}{_SYMBOL}:\n"
        f'.incbin "{content}"\n.section .note.GNU-stack,"",%progbits\n'
    )
    return assembly


def compiled_imports(packed: bytes, source: bytes, cubin: bytes) -> bytes:
    """Return packed imports whose device module holds `cubin` instead of `source`.

    Args:
        packed: length of all that follows, then modules, each its kind and its bytes.
        source: what the module holds.
        cubin: what it is to hold.

    Raises:
        ValueError: the bytes are not laid out as this file's docstring says.
    """
    kind, content = _string(_KIND.encode()), _string(source)
    end = packed.find(content)
    # In front of the source the format is "cuda", and in front of that the kind.
    start = packed.rfind(kind, 0, max(packed.rfind(kind, 0, max(end, 0)), 0))
    length = start + len(kind)
    inside = packed[length + 8 : end + len(content)]
    expected = int.from_bytes(packed[length : length + 8], "little")
    if min(start, end) < 0 or not inside.startswith(kind) or len(inside) != expected:
        raise ValueError(
            "TVM packs device modules in another way than this version is made for"
        )
    made = _string(_COMPILED.encode()) + inside[len(kind) : -len(content)] + _string(cubin)
    rest = packed[8:length] + _string(made) + packed[end + len(content) :]
    return _string(rest)


def _string(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content
