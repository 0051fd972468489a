"""Operators that move codes, in Relay: bytes stay bytes."""

from collections.abc import Callable
from typing import Any

from passes.emit.relay.text import Text, small
from qtool.core.dialect import Concat, MaxPool, Op, Pad, Reshape, Slice, Transpose, Upsample

# Adds an operator on the results of its inputs, returns its own.
Adapter = Callable[[Any, Text, list[str]], str]


def _max_pool(op: MaxPool, text: Text, inputs: list[str]) -> str:
    # Relay pads with the smallest byte, 0: it never wins.
    return text.call(
        "nn.max_pool2d", *inputs, pool_size=op.kernel, strides=op.strides, padding=op.pads
    )


def _reshape(op: Reshape, text: Text, inputs: list[str]) -> str:
    return text.call("reshape", *inputs, newshape=(text.batch, *op.shape))


def _transpose(op: Transpose, text: Text, inputs: list[str]) -> str:
    return text.call("transpose", *inputs, axes=op.perm)


def _concat(op: Concat, text: Text, inputs: list[str]) -> str:
    comma = "," if len(inputs) == 1 else ""
    return text.call("concatenate", f"({', '.join(inputs)}{comma})", axis=op.axis)


def _slice(op: Slice, text: Text, inputs: list[str]) -> str:
    parts = list(zip(op.starts, op.shape, op.steps, strict=True))
    ends = [start + (count - 1) * step + 1 for start, count, step in parts]
    return text.call(
        "strided_slice", *inputs, begin=(0, *op.starts), end=(text.batch, *ends),
        strides=(1, *op.steps), axes=None,
    )  # fmt: skip


def _pad(op: Pad, text: Text, inputs: list[str]) -> str:
    sizes = zip(op.before, op.shape, text.shapes[op.inputs[0]], strict=True)
    widths = [(before, total - size - before) for before, total, size in sizes]
    return text.call("nn.pad", *inputs, small(op.code, "uint8"), pad_width=[(0, 0), *widths])


def _upsample(op: Upsample, text: Text, inputs: list[str]) -> str:
    (x,) = inputs
    for axis, factor in enumerate(op.factors, 1):
        if factor > 1:
            x = text.call("repeat", x, repeats=factor, axis=axis)
    return x


MOVES: dict[type[Op], Adapter] = {
    MaxPool: _max_pool, Reshape: _reshape, Transpose: _transpose, Concat: _concat,
    Slice: _slice, Pad: _pad, Upsample: _upsample,
}  # fmt: skip
