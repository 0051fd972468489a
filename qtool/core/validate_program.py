"""Refuse an integer program whose operators do not fit each other, before anything runs it.

Shapes, types and orders within the file are `qtool.export.validate`'s; here the operators are
typed: every tensor read is computed before, in the shape that its reader's weights are for.
"""

from math import prod

import numpy as np

from qtool.core.dialect import Average, Conv, Gemm, Lookup, Op, Program, Quantize
from qtool.core.errors import UserError
from qtool.core.numerics import multiplier

Shape = tuple[int, ...]


def check_program(program: Program) -> None:
    """Check `program` as a whole.

    Raises:
        UserError: names the first operator that does not fit.
    """
    shapes = {program.input_name: program.input_shape}
    for op in program.ops:
        if not op.shape or min(op.shape) < 1:
            raise UserError(f"node {op.name}: result of shape {op.shape}")
        if not 0 <= op.lo <= op.hi <= 255:
            raise UserError(f"node {op.name}: window {op.lo} to {op.hi} is empty")
        codes = program.input_kind == "uint8" or isinstance(op, Quantize)
        for name in op.inputs:
            if name not in shapes or (name == program.input_name and not codes):
                raise UserError(f"node {op.name}: no operator computes its input {name}")
        _check_shape(op, [shapes[name] for name in op.inputs])
        shapes[op.output] = op.shape
    if program.output not in shapes:
        raise UserError(f"no operator computes the output {program.output}")


def _check_shape(op: Op, sources: list[Shape]) -> None:
    """Check the shapes that ONNX's own inference does not know, of contrib operators."""
    if isinstance(op, Conv | Gemm):
        _check_layer(op, sources[0])
        return
    fits = True
    if isinstance(op, Average):
        fits = op.shape == (sources[0][0], *[1] * len(sources[0][1:]))
    elif isinstance(op, Lookup | Quantize):
        fits = op.shape == sources[0]
    if not fits:
        raise UserError(f"node {op.name}: result of shape {op.shape} from {sources[0]}")


def _check_layer(op: Conv | Gemm, source: Shape) -> None:
    outputs = (op.w_OIHW if isinstance(op, Conv) else op.w_OI).shape[0]
    if isinstance(op, Conv):
        inputs, expected = source[0], op.w_OIHW.shape[1] * op.groups
    else:
        inputs, expected = prod(source), op.w_OI.shape[1]
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
