"""Quantization grids: scales finite and positive, zero points of their codes' type.

One of each per tensor, or one per channel.
"""

from math import prod

import numpy as np
import onnx

from qtool.core.errors import UnsupportedError, UserError
from qtool.export.validate.facts import Facts, attribute, input_at, type_name

# Where the codes, their scale and their zero point are; no codes where only a result has them.
Positions = tuple[int | None, int, int]

# operator: its grids; every operator that has one must be here
GRIDS: dict[str, tuple[Positions, ...]] = {
    "QuantizeLinear": ((None, 1, 2),),
    "DequantizeLinear": ((0, 1, 2),),
    "QLinearConv": ((0, 1, 2), (3, 4, 5), (None, 6, 7)),
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5), (None, 6, 7)),
    "QLinearAdd": ((0, 1, 2), (3, 4, 5), (None, 6, 7)),
    "QLinearMul": ((0, 1, 2), (3, 4, 5), (None, 6, 7)),
    "QGemm": ((0, 1, 2), (3, 4, 5), (None, 7, 8)),
    "QLinearGlobalAveragePool": ((0, 1, 2), (None, 3, 4)),
    "QLinearAveragePool": ((0, 1, 2), (None, 3, 4)),
    "QLinearLeakyRelu": ((0, 1, 2), (None, 3, 4)),
    "QLinearSigmoid": ((0, 1, 2), (None, 3, 4)),
    # One more for each tensor, from the third input on.
    "QLinearConcat": ((None, 0, 1),),
}


def check_grids(node: onnx.NodeProto, facts: Facts, where: str) -> None:
    """Check the grids of what `node` reads and makes.

    Raises:
        UserError: a grid that means nothing.
    """
    grids = GRIDS.get(node.op_type, ())
    if node.op_type == "QLinearConcat":
        grids += tuple((i, i + 1, i + 2) for i in range(2, len(node.input), 3))
    for positions in grids:
        _check_grid(node, positions, facts, where)


def _check_grid(node: onnx.NodeProto, positions: Positions, facts: Facts, where: str) -> None:
    """Check a scale, and the zero point beside it."""
    codes, scale, zero = (input_at(node, position) for position in positions)
    values = facts.array(scale)
    if values is None:
        return  # computed scales are the reader's to refuse
    if values.dtype != np.float32:
        raise UnsupportedError(
            f"{where}: scale {scale} is {values.dtype}; float32 is supported"
        )
    if not (np.isfinite(values) & (values > 0)).all():
        raise UserError(f"{where}: scale {scale} is not finite and positive")
    if values.ndim > 1:
        raise UnsupportedError(f"{where}: scale {scale} has {values.ndim} dimensions; 0 or 1")
    channels = _channels(node, positions, facts)
    if values.size != 1 and channels is not None and values.size != channels:
        raise UserError(f"{where}: {values.size} scales for {channels} channels")
    offsets = facts.shapes.get(zero)
    if (
        zero
        and offsets is not None
        and (len(offsets) > 1 or prod(n or 0 for n in offsets) != values.size)
    ):
        raise UserError(f"{where}: {values.size} scales, but zero points of shape {offsets}")
    # A contrib operator's result has no type until it is expanded.
    if codes and zero and facts.types.get(codes, 0) not in (0, facts.types.get(zero, 0)):
        kinds = [type_name(facts.types.get(name, 0)) for name in (codes, zero)]
        raise UserError(f"{where}: codes are {kinds[0]}, their zero point is {kinds[1]}")


def _channels(node: onnx.NodeProto, positions: Positions, facts: Facts) -> int | None:
    """Return how many scales the operand has if it has one a channel, None if unknown."""
    shape = facts.shapes.get(input_at(node, positions[0] if positions[0] is not None else 0))
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        is_weight = positions[0] == 3 and node.op_type in (
            "QLinearConv",
            "QLinearMatMul",
            "QGemm",
        )
        if not is_weight:
            return 1
        axis = 0 if node.op_type == "QLinearConv" else -1
        if node.op_type == "QGemm" and attribute(node, "transB", 0):
            axis = 0
    else:
        axis = attribute(node, "axis", 1)
    if shape is None or not -len(shape) <= axis < len(shape):
        return None if shape is None else 1
    return shape[axis]
