"""All vector units by name."""

from passes.emit.tvm.cpu.vectors.arm import Neon, NeonI8mm
from passes.emit.tvm.cpu.vectors.avx512 import Avx512Vbmi, Avx512Vnni
from passes.emit.tvm.cpu.vectors.base import Vectors
from passes.emit.tvm.cpu.vectors.portable import Portable
from passes.emit.tvm.cpu.vectors.x86 import Avx2, AvxVnni, Sse2

_UNITS: tuple[type[Vectors], ...] = (
    Avx512Vnni, Avx512Vbmi, AvxVnni, Avx2, Sse2, NeonI8mm, Neon, Portable,
)  # fmt: skip
# Of those that a CPU runs the first is the best.
UNITS: dict[str, type[Vectors]] = {unit.name: unit for unit in _UNITS}


def vectors(name: str) -> Vectors:
    """Return the vector unit of an instruction set."""
    return UNITS[name]()
