"""What a depthwise convolution kernel is told, and what follows from that."""

from dataclasses import dataclass

from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.epilogue import Form

_NEAR_BYTES = 1 << 18  # a part of a second level cache


@dataclass(frozen=True)
class DepthwiseSpec:
    """Shapes and strides of a depthwise convolution with one result per channel.

    Args:
        isa: name of the vector unit.
        height, width: of the result.
        channels: with those that pad the pixel, a multiple of 16.
        taps: (rows, columns) of the kernel.
        strides: (rows, columns).
        dilations: (rows, columns).
        x, y, other: strides of the input, the result and the residual operand.
        parallel: split over threads.
        form: of the epilogue.
    """

    isa: str
    height: int
    width: int
    channels: int
    taps: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    x: Place
    y: Place
    other: Place
    parallel: bool
    form: Form

    @property
    def groups(self) -> int:
        """Return the dwords that hold one column of taps."""
        return -(-self.taps[0] // 4)

    @property
    def rows(self) -> int:
        """Return the rows of results that the dwords of a column serve."""
        if self.dilations[0] > 1:
            return 1
        return min(self.height, (4 * self.groups - self.taps[0]) // self.strides[0] + 1)

    @property
    def blocks_outer(self) -> bool:
        """Return whether to walk the whole image for a block of channels, not all at a row.

        Weights then stay where they are; but a large input would be fetched for every block.
        """
        return self.height * self.strides[0] * self.x.row <= _NEAR_BYTES

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"depthwise{self.taps[0]}_{self.height}x{self.width}_{self.channels}"
