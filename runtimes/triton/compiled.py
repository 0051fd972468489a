"""A plan's kernels as code for a GPU, compiled without one: PTX to read, cubins to load.

What is compiled is what a `Plan` on that GPU would launch: the same tiles, and arguments
specialized as Triton does when it launches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from qtool.core.dialect import Program
from qtool.core.errors import UserError
from runtimes.triton.device import INTERPRET, Device
from runtimes.triton.launch import EXACT, Launch
from runtimes.triton.operators import make_plan

# Triton's names of torch's types.
_POINTERS = {
    torch.int8: "*i8", torch.uint8: "*u8", torch.int32: "*i32", torch.float32: "*fp32",
}  # fmt: skip
# What an argument may be a multiple of, for wide loads.
_ALIGNED = 16


@dataclass(frozen=True)
class Code:
    """A compiled kernel, and the layers that launch it.

    Args:
        kernel: its name.
        layers: names of those that launch it.
        ptx: assembly.
        cubin: machine code.
    """

    kernel: str
    layers: tuple[str, ...]
    ptx: str
    cubin: bytes


def compile_kernels(
    program: Program, batch: int, arch: int, processors: int
) -> Iterator[Code]:
    """Yield every kernel that `program` launches for `batch` images on a GPU.

    Args:
        program: without islands.
        batch: images at once.
        arch: compute capability, 80 or 90.
        processors: multiprocessors of the GPU, from which tiles are chosen.

    Raises:
        UserError: kernels are interpreted in this process.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise UserError(f"kernels are compiled without {INTERPRET} in the environment")
    device = Device(torch.device("meta"), processors, f"sm_{arch}")
    plan, _ = make_plan(program, batch, device, {})
    sources: dict[str, tuple[ASTSource, Launch, list[str]]] = {}
    for launch in plan.launches:
        source = _source(ASTSource, launch)
        key = f"{source.hash()} {sorted(launch.options.items())}"
        sources.setdefault(key, (source, launch, []))[2].append(launch.name)
    for source, launch, names in sources.values():
        options = {**launch.options, **EXACT}
        made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        code = made.asm
        yield Code(launch.kernel.__name__, tuple(names), code["ptx"], code["cubin"])


def _source(kind: Any, launch: Launch) -> Any:
    """Return the kernel with the types of its arguments, as a launch would specialize it."""
    kernel = launch.kernel
    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(launch.constants)
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    numbers = iter(launch.args)
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in launch.constants:
            signature[name] = "constexpr"
            continue
        value = next(numbers)
        signature[name] = _type(value)
        if parameter.do_not_specialize or isinstance(value, float):
            continue
        if isinstance(value, int) and value == 1:
            signature[name], constants[name] = "constexpr", 1
        elif _aligned(value):
            attributes[(index,)] = [["tt.divisibility", _ALIGNED]]
    return kind(kernel, signature, constants, attributes)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _aligned(value: Any) -> bool:
    if isinstance(value, torch.Tensor):  # memory itself is aligned
        return value.storage_offset() * value.dtype.itemsize % _ALIGNED == 0
    return bool(value % _ALIGNED == 0)
