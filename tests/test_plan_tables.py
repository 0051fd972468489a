"""Look-ups in the plan: which are fused, and what the others read."""

import numpy as np
import pytest

from passes.emit.tvm.cpu.plan.fusion import fuse
from qtool.core.dialect import Add, Conv, Grid, Lookup, Op, Program, Quantize

SHAPE, GRID = (4, 3, 3), Grid(np.float32(1), 0)
RNG = np.random.default_rng(0)
TABLES = [RNG.integers(0, 256, 256).astype(np.uint8) for _ in range(2)]


def conv(name: str, source: str) -> Conv:
    return Conv(
        name, name, (source,), GRID, 0, 255, SHAPE, GRID, np.ones((4, 4, 1, 1), np.int8),
        np.ones(4, np.float32), np.zeros(4, np.int32), (1, 1), (0, 0, 0, 0), (1, 1), 1, None,
    )  # fmt: skip


def look_up(name: str, source: str, table: int) -> Lookup:
    return Lookup(name, name, (source,), GRID, 0, 255, SHAPE, TABLES[table])


def program(*ops: Op) -> Program:
    first = Quantize("image", "codes", ("image",), GRID, 0, 255, SHAPE)
    last = ops[-1].output
    return Program("image", SHAPE, "float32", "logits", last, GRID, (first, *ops), {})


@pytest.mark.parametrize("shared", [False, True])
def test_a_change_of_grid_reads_what_is_stored_anyway(shared: bool) -> None:
    """Activation and change of grid are one table, unless others read the activation."""
    ops: list[Op] = [conv("a", "codes"), look_up("act", "a", 0), look_up("grid", "act", 1)]
    ops.append(conv("b", "grid"))
    if shared:
        ops.append(Add("sum", "sum", ("b", "act"), GRID, 0, 255, SHAPE, GRID, GRID))
    nodes = {node.output: node for node in fuse(program(*ops), tables=True)}
    if not shared:
        assert list(nodes) == ["codes", "grid", "b"]
        assert nodes["grid"].op.name == "a"
        assert np.array_equal(nodes["grid"].table, TABLES[1][TABLES[0]])
        return
    # One pass over the tensor, not two: the convolution applies the activation itself.
    assert list(nodes) == ["codes", "act", "grid", "sum"]
    assert nodes["act"].op.name == "a" and np.array_equal(nodes["act"].table, TABLES[0])
    grid = nodes["grid"].op
    assert isinstance(grid, Lookup) and grid.inputs == ("act",)
    assert np.array_equal(grid.table, TABLES[1])
