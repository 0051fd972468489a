"""Rewrites that make a program fit vector kernels; no code changes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.emit.tvm.cpu.plan.fusion import Node
from passes.emit.tvm.cpu.plan.own_operators import Copy, Pixels, Select
from qtool.core.dialect import Conv, Grid, Op, Program, Reshape, Slice, Transpose

PIXELS = "<pixels>"
_VECTOR_RANKS = (1, 3)
_NO_GRID = Grid(np.float32(1), 0)


def select_channels(nodes: Sequence[Node], output: str) -> list[Node]:
    """Make one selection of channels of a chain of moves, such as ShuffleNet's.

    A chain begins and ends at (C, H, W) and no one else reads what is between.
    """
    readers = Counter(name for node in nodes for name in node.inputs) + Counter([output])
    makers = {node.output: node for node in nodes}
    made: dict[str, Node] = {}
    dropped: set[str] = set()
    for node in nodes:
        chain = _chain(node, makers, readers)
        index = _selection(chain, makers) if chain else None
        if index is None:
            continue
        source = chain[0].inputs[0]
        op = node.op
        selected = Select(
            op.name, op.output, (source,), op.grid, op.lo, op.hi, op.shape, index
        )
        made[node.output] = Node(selected, node.output)
        dropped |= {part.output for part in chain[:-1]}
    return [made.get(n.output, n) for n in nodes if n.output not in dropped]


def _moves(node: Node) -> bool:
    return isinstance(node.op, Reshape | Transpose | Slice)


def _chain(node: Node, makers: dict[str, Node], readers: Counter[str]) -> list[Node]:
    """Return the moves that end in `node`, the first of which reads (C, H, W)."""
    if not _moves(node) or len(node.op.shape) != 3:
        return []
    chain = [node]
    while True:
        source = chain[0].inputs[0]
        before = makers.get(source)
        if before is None:
            return []
        if len(before.op.shape) == 3:
            whole = len(chain) > 1 or isinstance(node.op, Slice)
            return chain if whole else []
        if not _moves(before) or readers[source] != 1:
            return []
        chain.insert(0, before)


def _selection(chain: Sequence[Node], makers: dict[str, Node]) -> tuple[int, ...] | None:
    """Return which channel each channel of the result is; None where pixels move too."""
    before = makers[chain[0].inputs[0]].op.shape
    after = chain[-1].op.shape
    first = chain[0].op
    if before[1:] != after[1:] or (
        len(chain) == 1 and isinstance(first, Slice) and first.steps[0] == 1
    ):
        return None
    places = np.arange(prod(before)).reshape(before)
    for node in chain:
        places = _moved(node.op, places)
    index = places[:, 0, 0] // prod(before[1:])
    expected = np.arange(prod(before)).reshape(before)[index]
    return tuple(map(int, index)) if np.array_equal(places, expected) else None


def _moved(op: Op, x: NDArray[Any]) -> NDArray[Any]:
    """Return what a move makes of `x`, without the batch."""
    if isinstance(op, Transpose):
        return x.transpose([axis - 1 for axis in op.perm[1:]])
    if isinstance(op, Slice):
        ends = (a + n * s for a, n, s in zip(op.starts, op.shape, op.steps, strict=True))
        bounds = zip(op.starts, ends, op.steps, strict=True)
        return x[tuple(slice(*bound) for bound in bounds)]
    return x.reshape(op.shape)


def read_pixels(program: Program, nodes: Sequence[Node]) -> list[Node]:
    """Put a step in front that brings a uint8 input into pixels."""
    if program.input_kind != "uint8" or len(program.input_shape) not in _VECTOR_RANKS:
        return list(nodes)
    name = program.input_name
    first = Pixels("input", PIXELS, (name,), _NO_GRID, 0, 255, program.input_shape)
    return [Node(first, PIXELS), *(renamed(node, {name: PIXELS}) for node in nodes)]


def renamed(node: Node, names: dict[str, str]) -> Node:
    """Return `node` reading tensors under other names."""

    def rename(op: Any) -> Any:
        return replace(op, inputs=tuple(names.get(name, name) for name in op.inputs))

    residual = None if node.residual is None else rename(node.residual)
    return replace(node, op=rename(node.op), residual=residual)


def separate_halos(nodes: Sequence[Node]) -> list[Node]:
    """Copy tensors that convolutions pad with different codes: one halo holds one code."""
    codes: dict[str, int] = {}
    copies: dict[tuple[str, int], str] = {}
    found: list[Node] = []
    shapes = {node.output: node.op.shape for node in nodes}
    for node in nodes:
        op = node.op
        if not isinstance(op, Conv) or not any(op.pads):
            found.append(node)
            continue
        source, code = op.inputs[0], op.x.zero_point
        if codes.setdefault(source, code) == code:
            found.append(node)
            continue
        if (source, code) not in copies:
            own = copies[source, code] = f"{source} (halo {code})"
            copy = Copy(op.name, own, (source,), _NO_GRID, 0, 255, shapes[source])
            found.append(Node(copy, own))
        # Only the convolution's input: a residual operand may be the same tensor.
        moved = replace(op, inputs=(copies[source, code],))
        found.append(replace(node, op=moved))
    return found
