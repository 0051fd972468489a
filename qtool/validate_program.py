"""Refuse an integer program whose operators do not fit each other, before anything runs it.

Shapes, types and orders within the file are `qtool.validate`'s; here the operators are typed:
every tensor read is computed before, and has as many channels as the reader's weights. (A
tensor may be read on another grid than it is written on: its codes are then other values.)
"""

from math import prod

import numpy as np

from qtool.dialect import Average, Conv, Gemm, Lookup, Op, Program, Reshape, weight_of
from qtool.errors import UserError
from qtool.numerics import multiplier


def check_program(program: Program) -> None:
    """Check `program` as a whole.

    Raises:
        UserError: names the first operator that does not fit.
    """
    known: dict[str, Op] = {}
    for op in program.ops:
        if not op.shape or min(op.shape) < 1:
            raise UserError(f"node {op.name}: result of shape {op.shape}")
        if not 0 <= op.lo <= op.hi <= 255:
            raise UserError(f"node {op.name}: window {op.lo} to {op.hi} is empty")
        sources = [known.get(name) for name in op.inputs if name != program.input_name]
        for name, source in zip(op.inputs, sources, strict=False):
            if source is None:
                raise UserError(f"node {op.name}: no operator computes its input {name}")
        found = [source for source in sources if source is not None]
        _check_shape(op, found)
        if isinstance(op, Conv | Gemm) and sources[0] is not None:
            _check_layer(op, sources[0])
        known[op.output] = op
    if program.output not in known:
        raise UserError(f"no operator computes the output {program.output}")


def _check_shape(op: Op, sources: list[Op]) -> None:
    """Check the shapes that ONNX's own inference does not know, of contrib operators."""
    shapes = [source.shape for source in sources]
    if isinstance(op, Reshape):
        fits = prod(op.shape) == prod(shapes[0])
    elif isinstance(op, Average):
        fits = op.shape == (shapes[0][0], *[1] * len(shapes[0][1:]))
    elif isinstance(op, Lookup):
        fits = op.shape == shapes[0]
    else:
        return
    if not fits:
        raise UserError(f"node {op.name}: result of shape {op.shape} from {shapes[0]}")


def _check_layer(op: Conv | Gemm, source: Op) -> None:
    outputs = weight_of(op).shape[0]
    if isinstance(op, Conv):
        inputs, expected = source.shape[0], op.w_OIHW.shape[1] * op.groups
    else:
        inputs, expected = prod(source.shape), op.w_OI.shape[1]
    if inputs != expected or op.shape[0] != outputs:
        raise UserError(
            f"layer {op.name}: input of {inputs} channels and {op.shape[0]} outputs; its "
            f"weights are for {expected} and {outputs}"
        )
    sizes = {"bias": op.bias.shape, "weight scale": op.w_scale.shape}
    for what, shape in sizes.items():
        if shape not in ((outputs,), (1,)):
            raise UserError(f"layer {op.name}: {what} of shape {shape} for {outputs} outputs")
    if not np.isfinite(multiplier(op.x.scale, op.w_scale, op.grid.scale)).all():
        raise UserError(f"layer {op.name}: its scales overflow float32")
