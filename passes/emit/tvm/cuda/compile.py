"""A program -> a sealed library whose kernels run on a GPU."""

from dataclasses import replace

from passes.emit.base import Note
from passes.emit.facts import describe
from passes.emit.tvm.compile import Compiled, described_code
from passes.emit.tvm.cuda.gpu_target import GpuTarget
from passes.emit.tvm.cuda.library import CudaLibrary, compile_cuda
from passes.emit.tvm.cuda.module import emit_cuda
from qtool.core.dialect import Program
from qtool.core.sealed import seal


def compile_for_gpu(
    program: Program, target: GpuTarget, batch: int = 1, note: Note | None = None
) -> tuple[Compiled, CudaLibrary]:
    """Compile `program` and seal its library.

    Args:
        program: the integer dialect.
        target: the GPU.
        batch: images per call.
        note: is told what is going on.

    Returns:
        The sealed library, and what it was made of.

    Raises:
        UnsupportedError: a float island; names it.
        UserError: no NVRTC, nothing to link with, or linking fails.
    """
    emitted = emit_cuda(program, batch, target.mma)
    library = compile_cuda(emitted.ir, target, note)
    own = emitted.facts | {"arena_bytes": library.arena_bytes}
    facts = describe(program) | described_code(target.host, batch)
    facts |= {"device": target.to_json(), "module": own}
    module = replace(emitted, networks={None: own})
    return Compiled(seal(library.data, facts), facts, module), library
