"""Weights of several widths in one module: the widest stored, others made of them once.

Codes that nest (`passes.packing.nesting`) are stored at the widest only, in the order in which
its kernels read them. For every other width a function makes what its kernels read, as tables
say; who calls the network keeps the result. Orders must agree: where a layer's kernel is of
another kind at fewer bits, or its channels do not all follow one table, its weights are
stored. Nothing is believed: what would be made is compared with what is needed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.emit.tvm.cpu.kernels.depthwise import DepthwiseConv
from passes.emit.tvm.cpu.kernels.direct import DirectConv
from passes.emit.tvm.cpu.kernels.layout import round_up
from passes.emit.tvm.cpu.kernels.narrow import Narrow, Shape, codes_of, narrow
from passes.emit.tvm.cpu.kernels.winograd import Winograd
from passes.emit.tvm.cpu.network import Network
from passes.emit.tvm.cpu.plan.memory import ALIGNMENT
from passes.emit.tvm.cpu.plan.steps import Operand, Step
from passes.emit.tvm.cpu.vectors.units import vectors
from passes.packing.nesting import CODES, Nested, Width, nest
from qtool.core.selection import parse_uniform

Codes = NDArray[np.int8]
MADE = "<made>"
_BYTE = 8


@dataclass(frozen=True)
class Weights:
    """What a function of a module makes.

    Args:
        name: of the function, ``weights_w4``.
        steps: that it calls, in any order, by the content of what each makes; their output
            is `MADE`.
        bytes: of the result.
    """

    name: str
    steps: Mapping[bytes, Step]
    bytes: int

    def place(self, array: NDArray[Any]) -> int | None:
        """Return where a constant is in the result; None where it is not."""
        step = self.steps.get(array.tobytes())
        return None if step is None else step.output.offset


@dataclass(frozen=True)
class _Need:
    """Weights of a layer at fewer bits, and the wide ones that they may be made of."""

    wide: Codes
    narrow: Codes
    shape: Shape
    bits: int


def narrow_weights(networks: Mapping[str | None, Network]) -> dict[str | None, Weights]:
    """Return what is made for each pair; those that need nothing are absent."""
    widths = {pair: given.weight for pair in networks if (given := parse_uniform(str(pair)))}
    widest = max(widths.values(), default=0)
    stored: dict[str, dict[bytes, Codes]] = {}
    for pair, width in widths.items():
        for step, codes in _weights(networks[pair]) if width == widest else ():
            if _fields(step) == _BYTE:
                stored.setdefault(step.layer, {}).setdefault(codes.tobytes(), codes)
    needs: dict[tuple[int, bytes], _Need] = {}
    for pair, width in widths.items():
        for step, codes in _weights(networks[pair]) if width < widest else ():
            for wide in stored.get(step.layer, {}).values():
                shape = _shape(step, codes)
                if prod(shape) == wide.size:
                    need = _Need(wide, codes, shape, _fields(step))
                    needs.setdefault((width, codes.tobytes()), need)
    made = _made(needs, widest)
    return {pair: made[width] for pair, width in widths.items() if width in made}


def _weights(network: Network) -> Iterator[tuple[Step, Codes]]:
    """Yield the steps of layers and their weights."""
    for step in network.plan.steps:
        if isinstance(step.kernel, DirectConv | Winograd | DepthwiseConv):
            yield step, step.constants[0]


def _fields(step: Step) -> int:
    """Return the bits in which a layer's weights are stored."""
    return step.kernel.weight_bits if isinstance(step.kernel, DirectConv) else _BYTE


def _shape(step: Step, codes: Codes) -> Shape:
    """Return the shape of the wide codes that the weights of a layer would be made of."""
    kernel = step.kernel
    if not isinstance(kernel, DirectConv):
        return 1, 1, codes.size
    inner = 4 * kernel.tile.vectors * vectors(kernel.isa).lanes
    return codes.size // (kernel.weight_vectors * inner), kernel.dwords, inner


def _made(needs: Mapping[tuple[int, bytes], _Need], widest: int) -> dict[int, Weights]:
    """Return what is made of each width, for needs by width and content."""
    layers = {
        str(number): [
            Width(need.wide.reshape(1, -1), _BYTE, widest),
            Width(_codes(need), need.bits, width),
        ]
        for number, ((width, _), need) in enumerate(needs.items())
    }
    found: dict[int, list[tuple[bytes, Step]]] = {}
    sizes: dict[int, int] = {}
    for ((width, key), need), (_, nested) in zip(
        needs.items(), nest(layers).values(), strict=True
    ):
        answers = _answers(nested)
        if answers is None:
            continue
        made = narrow(need.wide, answers, need.shape, need.bits)
        if not np.array_equal(made, need.narrow):
            continue
        size = sizes.get(width, 0)
        constants = (need.wide, answers, np.array(need.shape, np.int32))
        step = Step(Narrow(need.bits), (), Operand(MADE, size), constants)
        found.setdefault(width, []).append((key, step))
        sizes[width] = size + round_up(len(key) + ALIGNMENT, ALIGNMENT)
    return {
        width: Weights(f"weights_w{width}", dict(steps), sizes[width])
        for width, steps in found.items()
    }


def _codes(need: _Need) -> Codes:
    """Return the narrow codes, as of a single channel."""
    return codes_of(need.narrow, need.shape, need.bits).reshape(1, -1)


def _answers(nested: Nested) -> Codes | None:
    """Return the answers to all bytes of wide codes; None where there is no table."""
    if nested.table is None:
        return None
    index = np.arange(CODES, dtype=np.uint8).view(np.int8).astype(np.int32)
    return nested.table[index + CODES * int(nested.rules[0])]
