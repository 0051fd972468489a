"""Fusions on the dialect, exact by construction: no formula changes, fewer tensors are stored.

- Whatever is computed from one tensor elementwise is a table of its 256 codes: Hardswish (two
  look-ups and a product) is one look-up. The table is made with `qtool.core.numerics` itself.
- An addition is computed where the later of its two operands is: in a convolution's epilogue.
- A table is applied in the epilogue of the convolution whose result nobody else reads.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtool.core import numerics
from qtool.core.dialect import Add, Conv, FloatGemm, Gemm, Lookup, Mul, Op, Program

Table = NDArray[np.uint8]


@dataclass(frozen=True)
class Node:
    """An operator with what is fused into it.

    Args:
        op: the operator.
        output: name of the tensor that it writes.
        residual: an addition that takes the operator's codes.
        table: answers that replace the operator's codes.
    """

    op: Op
    output: str
    residual: Add | None = None
    table: Table | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the tensors that it reads."""
        if self.residual is None:
            return self.op.inputs
        others = tuple(name for name in self.residual.inputs if name != self.op.output)
        return self.op.inputs + others

    @property
    def first(self) -> bool:
        """Return True when the operator's codes are the addition's first operand."""
        return self.residual is not None and self.residual.inputs[0] == self.op.output


def fuse(program: Program, tables: bool) -> list[Node]:
    """Return the operators of `program`, fused.

    Args:
        program: the integer dialect.
        tables: whether epilogues can look codes up.
    """
    nodes = _additions([Node(op, op.output) for op in _collapse(program)], program.output)
    return _tables(nodes, program.output) if tables else nodes


def separate(node: Node) -> list[Node]:
    """Return what `node` is made of, one operator each; the last has its output."""
    parts: list[Op] = [node.op]
    if node.residual is not None:
        parts.append(node.residual)
    if node.table is not None:
        last = parts[-1]
        parts.append(
            Lookup(
                last.name, node.output, (last.output,), last.grid, last.lo, last.hi,
                last.shape, node.table,
            )
        )  # fmt: skip
    return [Node(part, node.output if part is parts[-1] else part.output) for part in parts]


def _readers(inputs: Sequence[tuple[str, ...]], output: str) -> Counter[str]:
    """Count who reads each tensor; the program's output has one reader more."""
    return Counter(name for names in inputs for name in names) + Counter([output])


def _collapse(program: Program) -> list[Op]:
    """Make one look-up of every elementwise function of a single tensor."""
    sources: dict[str, tuple[str, Table]] = {}
    made: dict[str, Op] = {}
    for op in program.ops:
        found = _as_table(op, sources)
        if found is not None:
            sources[op.output] = found
            source, table = found
            made[op.output] = Lookup(
                op.name, op.output, (source,), op.grid, op.lo, op.hi, op.shape, table
            )
    ops = _live([made.get(op.output, op) for op in program.ops], program.output)
    kept = {op.output for op in ops}
    # A look-up of a tensor that is needed anyway reads that, which leaves a single reader to
    # the tensor before it: its producer can apply the first table.
    own = {op.output: op for op in program.ops if isinstance(op, Lookup)}
    nearest = {name: op for name, op in own.items() if kept.issuperset(op.inputs)}
    return _live([nearest.get(op.output, op) for op in ops], program.output)


def _as_table(op: Op, sources: dict[str, tuple[str, Table]]) -> tuple[str, Table] | None:
    """Return the tensor of which `op` is an elementwise function, and its answers."""
    codes = np.arange(256, dtype=np.uint8)
    origins = [sources.get(name, (name, codes)) for name in op.inputs]
    if isinstance(op, Lookup):
        source, table = origins[0]
        return source, op.table[table]
    if not isinstance(op, Add | Mul) or origins[0][0] != origins[1][0]:
        return None
    formula = numerics.add if isinstance(op, Add) else numerics.multiply
    answers = formula(
        origins[0][1], op.a.scale, op.a.zero_point, origins[1][1], op.b.scale,
        op.b.zero_point, op.grid.scale, op.grid.zero_point, op.lo, op.hi,
    )  # fmt: skip
    return origins[0][0], answers


def _live(ops: Sequence[Op], output: str) -> list[Op]:
    """Drop what nobody reads any more."""
    needed, kept = {output}, []
    for op in reversed(ops):
        if op.output in needed or isinstance(op, FloatGemm):
            needed |= set(op.inputs)
            kept.append(op)
    return kept[::-1]


def _additions(nodes: Sequence[Node], output: str) -> list[Node]:
    """Fuse additions into the later of the convolutions that feed them."""
    readers = _readers([node.inputs for node in nodes], output)
    index = {node.output: i for i, node in enumerate(nodes)}
    fused: dict[int, Node] = {}
    dropped: set[int] = set()
    for i, node in enumerate(nodes):
        if not isinstance(node.op, Add):
            continue
        a, b = node.op.inputs
        places = (index.get(a, -1), index.get(b, -1))
        later = max(places)
        if min(places) < 0 or a == b or later in fused:
            continue
        target, same = nodes[later], all(nodes[p].op.shape == node.op.shape for p in places)
        # Epilogues read a pixel of the other operand for each of theirs: none is broadcast.
        if same and _has_epilogue(target) and readers[target.output] == 1:
            fused[later] = replace(target, output=node.output, residual=node.op)
            dropped.add(i)
    return [fused.get(i, node) for i, node in enumerate(nodes) if i not in dropped]


def _has_epilogue(node: Node) -> bool:
    """Return True where a kernel turns sums into codes, and can go on with them."""
    return isinstance(node.op, Conv | Gemm) and not isinstance(node.op, FloatGemm)


def _tables(nodes: Sequence[Node], output: str) -> list[Node]:
    """Fuse look-ups into the convolution before them."""
    readers = _readers([node.inputs for node in nodes], output)
    makers = {node.output: i for i, node in enumerate(nodes)}
    result: list[Node | None] = list(nodes)
    for i, node in enumerate(nodes):
        if not isinstance(node.op, Lookup):
            continue
        place = makers.get(node.op.inputs[0], -1)
        maker = result[place] if place >= 0 else None
        if maker is None or readers[maker.output] > 1 or maker.table is not None:
            continue
        if _has_epilogue(maker):
            result[place] = replace(maker, output=node.output, table=node.op.table)
            makers[node.output] = place
            result[i] = None
    return [node for node in result if node is not None]
