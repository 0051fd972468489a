"""Operators that only move codes: views where memory allows it, copies elsewhere."""

from collections.abc import Sequence

from torch import Tensor

from qtool.core.dialect import Concat, Pad, Reshape, Slice, Transpose, Upsample
from runtimes.triton.kernels.elementwise import copy, fill
from runtimes.triton.plan import Plan
from runtimes.triton.spread import spread
from runtimes.triton.tiles import count
from runtimes.triton.window import SHIFT


def reshape(op: Reshape, plan: Plan) -> Tensor:
    """A view where memory allows it, else a copy.

    1. ``(C, H, W) -> (2, C / 2, H, W)``: a view
    2. ``(C, H, W) -> (C * H * W)``: a copy, to a result that is seen as the input's shape
    3. results that cannot be seen so are in the dialect's order of codes, not in NHWC
    """
    x, shape = plan.read(op), (plan.batch, *op.shape)
    if _is_seen_as(x, shape):
        return x.view(shape)
    y = plan.result(op)
    if not _is_seen_as(y, x.shape):
        y = y.movedim(1, -1).view(shape)
    spread(plan, op.name, copy, (x, y.view(x.shape)))
    return y


def _is_seen_as(x: Tensor, shape: Sequence[int]) -> bool:
    try:
        x.view(*shape)
    except RuntimeError:
        return False
    return True


def transpose(op: Transpose, plan: Plan) -> Tensor:
    """A view."""
    return plan.read(op).permute(op.perm)


def slice_(op: Slice, plan: Plan) -> Tensor:
    """A view."""
    ends = (a + n * s for a, n, s in zip(op.starts, op.shape, op.steps, strict=True))
    bounds = zip(op.starts, ends, op.steps, strict=True)
    return plan.read(op)[:, *(slice(*bound) for bound in bounds)]


def concat(op: Concat, plan: Plan) -> Tensor:
    """A copy of each part to its place."""
    y, start = plan.result(op), 0
    for index in range(len(op.inputs)):
        x = plan.read(op, index)
        size = x.shape[op.axis]
        spread(plan, op.name, copy, (x, y.narrow(op.axis, start, size)))
        start += size
    return y


def pad(op: Pad, plan: Plan) -> Tensor:
    """The code everywhere, then the codes to their place."""
    x, y = plan.read(op), plan.result(op)
    total, block = y.numel(), plan.device.block
    numbers = (total, op.code - SHIFT)
    plan.launch(op.name, fill, (count(total, block),), (y, *numbers), {"BLOCK": block})
    inner = y
    for axis, before in enumerate(op.before, 1):
        inner = inner.narrow(axis, before, x.shape[axis])
    spread(plan, op.name, copy, (x, inner))
    return y


def upsample(op: Upsample, plan: Plan) -> Tensor:
    """A copy of every code to a block of the result."""
    x, y = plan.read(op), plan.result(op)
    blocks = [len(x)]
    for axis, factor in enumerate(op.factors):
        blocks += [x.shape[2 * axis + 1], factor]
        x = x.unsqueeze(2 * axis + 2)
    spread(plan, op.name, copy, (x, y.view(blocks)))
    return y
