"""What the making of steps needs to know about the program."""

from dataclasses import dataclass
from math import prod

from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.layout import Layout, plain
from passes.emit.tvm.cpu.kernels.runs import Region
from passes.emit.tvm.cpu.plan.steps import INPUT, Operand
from passes.emit.tvm.cpu.plan.tiles import Choose, by_rule
from passes.emit.tvm.cpu.vectors.base import Vectors
from qtool.core.dialect import Program

# Splitting less work than this over threads costs more than it saves.
PARALLEL_BYTES = 150_000


@dataclass
class Context:
    """The program and the layouts of its tensors.

    Args:
        program: the dialect.
        unit: the vector unit.
        layouts: of every tensor.
        aliases: tensors that are another one.
        halo_codes: what is around each tensor that has a halo.
        choose: takes one of the kernels of a convolution.
    """

    program: Program
    unit: Vectors
    layouts: dict[str, Layout]
    aliases: dict[str, str]
    halo_codes: dict[str, int]
    choose: Choose = by_rule

    @property
    def vbmi(self) -> bool:
        """Return True where bytes can be permuted across 512 bits."""
        return self.unit.name == "avx512_vbmi"

    def layout(self, name: str) -> Layout:
        """Return the layout of a tensor."""
        if name == self.program.input_name:
            return plain(self.program.input_shape)
        return self.layouts[name]

    def start(self, name: str) -> Operand:
        """Return a pointer to the first byte of a tensor, the program's input among them."""
        return Operand(INPUT if name == self.program.input_name else name)

    def pixels(self, name: str) -> Operand:
        """Return a pointer to the first pixel of a tensor."""
        return Operand(name, self.layouts[name].origin)

    def last_tensor(self) -> str:
        """Return the tensor that is needed last."""
        name = self.program.output
        return self.aliases.get(name, name)


def place(layout: Layout) -> Place:
    """Return the strides of a layout."""
    return Place(layout.row, layout.pixel)


def region(layout: Layout) -> Region:
    """Return all pixels of a layout, with the channels that fill up vectors."""
    return Region(layout.height, layout.width, layout.pixel)


def only_channels(*shapes: tuple[int, ...]) -> bool:
    """Return True where all shapes are (C, 1, 1) or (C), which are stored alike."""
    return all(len(shape) in (1, 3) and prod(shape) == shape[0] for shape in shapes)


def large(layout: Layout) -> bool:
    """Return True where work on every byte is worth splitting over threads."""
    return layout.bytes >= PARALLEL_BYTES
