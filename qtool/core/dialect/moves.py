"""Data movement on codes: ONNX nodes that copy integers without changing one.

Each is read off its node as the type of its operator and that type's own fields.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.core.dialect.attributes import require_plain
from qtool.core.dialect.nodes import constant, ints, label, scalar, static_shape
from qtool.core.dialect.ops import (
    Concat,
    MaxPool,
    Op,
    Pad,
    Reshape,
    Slice,
    Transpose,
    Upsample,
)
from qtool.core.errors import UnsupportedError

Fields = dict[str, Any]


def read(node: ir.Node) -> tuple[type[Op], Fields]:
    """Return the operator type of a node among `MOVES`, and its own fields.

    Raises:
        UnsupportedError: attributes or operands that the dialect does not have.
    """
    require_plain(node)
    kind, fields = MOVES[node.op_type]
    return kind, fields(node)


def _reshape(node: ir.Node) -> Fields:
    _refuse_mixing(node, _keeps_batch(node))
    return {}


def _keeps_batch(node: ir.Node) -> bool:
    """True when every image keeps its own codes: sizes without the batch agree."""
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    return int(np.prod(before)) == int(np.prod(after))


def _transpose(node: ir.Node) -> Fields:
    rank = len(static_shape(node.inputs[0])) + 1
    perm = ints(node, "perm", tuple(reversed(range(rank))))
    _refuse_mixing(node, perm[0] == 0)
    return {"perm": perm}


def _concat(node: ir.Node) -> Fields:
    rank = len(static_shape(node.inputs[0])) + 1
    axis = node.attributes.get_int("axis", 0) % rank
    _refuse_mixing(node, axis != 0)
    return {"axis": axis}


def _slice(node: ir.Node) -> Fields:
    shape = static_shape(node.inputs[0])
    values = [_integers(node, index) for index in range(1, len(node.inputs))]
    starts, ends = values[0], values[1]
    axes = values[2] if len(values) > 2 else tuple(range(len(starts)))
    steps = values[3] if len(values) > 3 else (1,) * len(starts)
    first, stride = [0] * len(shape), [1] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index = axis % (len(shape) + 1) - 1
        if index < 0:
            _refuse_mixing(node, start == 0 and step == 1 and end >= 2**31 - 1)
            continue
        if step < 1:
            raise UnsupportedError(f"{label(node)}: Slice with step {step}; 1 or more")
        size = shape[index]
        first[index] = min(max(start + size if start < 0 else start, 0), size)
        stride[index] = step
    return {"starts": tuple(first), "steps": tuple(stride)}


def _pad(node: ir.Node) -> Fields:
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant" or (len(node.inputs) > 3 and node.inputs[3] is not None):
        raise UnsupportedError(
            f"{label(node)}: Pad with mode {mode}; constant, without axes, is supported"
        )
    pads = _integers(node, 1)
    rank = len(pads) // 2
    _refuse_mixing(node, pads[0] == 0 and pads[rank] == 0)
    if min(pads) < 0:
        raise UnsupportedError(f"{label(node)}: negative pads {pads}; use Slice")
    value = node.inputs[2] if len(node.inputs) > 2 else None
    code = 0 if value is None else int(scalar(value, f"{label(node)}: pad value"))
    return {"before": pads[1:rank], "code": code}


def _upsample(node: ir.Node) -> Fields:
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    wanted = {
        "mode": "nearest", "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }  # fmt: skip
    for name, value in wanted.items():
        got = node.attributes.get_string(name, value if name == "mode" else "")
        if got != value:
            raise UnsupportedError(
                f"{label(node)}: Resize with {name} {got or 'unset'}; {value} is supported"
            )
    if scales is None or scales[0] != 1 or np.any(scales != np.rint(scales)):
        raise UnsupportedError(
            f"{label(node)}: Resize by {scales}; constant whole factors are supported"
        )
    return {"factors": tuple(int(s) for s in scales[1:])}


def _max_pool(node: ir.Node) -> Fields:
    kernel = ints(node, "kernel_shape", ())
    if len(kernel) != 2:
        raise UnsupportedError(f"{label(node)}: {len(kernel)}-D MaxPool; 2-D is supported")
    return {
        "kernel": kernel, "strides": ints(node, "strides", (1, 1)),
        "pads": ints(node, "pads", (0, 0, 0, 0)),
    }  # fmt: skip


def _integers(node: ir.Node, index: int) -> tuple[int, ...]:
    array = constant(node.inputs[index])
    if array is None:
        raise UnsupportedError(
            f"{label(node)}: {node.op_type} with operands computed at run time"
        )
    return tuple(int(n) for n in array.reshape(-1))


def _refuse_mixing(node: ir.Node, keeps: bool) -> None:
    if not keeps:
        raise UnsupportedError(f"{label(node)}: {node.op_type} mixes images of a batch")


# node type: the operator it is read as, and how that operator's own fields are read
MOVES: dict[str, tuple[type[Op], Callable[[ir.Node], Fields]]] = {
    "Flatten": (Reshape, _reshape), "Reshape": (Reshape, _reshape),
    "Transpose": (Transpose, _transpose), "Concat": (Concat, _concat),
    "Slice": (Slice, _slice), "Pad": (Pad, _pad), "Resize": (Upsample, _upsample),
    "MaxPool": (MaxPool, _max_pool),
}  # fmt: skip
