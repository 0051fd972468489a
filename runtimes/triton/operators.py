"""What every operator of the dialect launches; the formulas are those of `numerics`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qtool.core import numerics
from qtool.core.dialect import (
    Add,
    Average,
    Concat,
    Conv,
    FloatGemm,
    Gemm,
    Island,
    Lookup,
    MaxPool,
    Mul,
    Op,
    Pad,
    Program,
    Quantize,
    Reshape,
    Slice,
    Transpose,
    Upsample,
)
from qtool.core.errors import UnsupportedError
from runtimes.triton import layers, moves
from runtimes.triton.device import Device
from runtimes.triton.kernels import elementwise
from runtimes.triton.plan import Constants, Plan
from runtimes.triton.spread import spread
from runtimes.triton.window import SHIFT, window_before, window_behind


def make_plan(
    program: Program, batch: int, device: Device, constants: Constants, keep: bool = False
) -> tuple[Plan, Tensor]:
    """Return the launches of `program` for `batch` images, and where its output will be.

    Args:
        program: what is executed.
        batch: images at once.
        device: where.
        constants: of its layers; what is missing is added.
        keep: every tensor has memory of its own, to be read afterwards.

    Raises:
        UserError: an island; more elements than kernels count.
    """
    plan = Plan(program, batch, device, constants, keep)
    if program.input_kind == "uint8":
        shifted = plan.image(program.input_name, program.input_shape)
        spread(plan, program.input_name, elementwise.shift_pixels, (plan.input, shifted))
        plan.tensors[program.input_name] = shifted
    for index, op in enumerate(program.ops):
        plan.finish(index, op, planned(op, plan))
    codes = plan.tensors[program.output]
    if program.float_output:
        return plan, codes
    grid, output = program.output_grid, torch.empty(codes.shape, device=device.torch)
    numbers = (float(grid.scale), grid.zero_point - SHIFT)
    spread(plan, program.output_name, elementwise.dequantize, (codes, output), *numbers)
    return plan, output


def planned(op: Op, plan: Plan) -> Tensor:
    """Add the launches of one operator, and return its result."""
    make = OPERATORS.get(type(op))
    if make is None:
        raise TypeError(f"{op.name}: {type(op).__name__} has no Triton kernel")
    return make(op, plan)


def _quantize(op: Quantize, plan: Plan) -> Tensor:
    operands = (plan.read(op), plan.image(op.output, op.shape))
    numbers = (float(op.grid.scale), *window_behind(op))
    spread(plan, op.name, elementwise.quantize, operands, *numbers)
    return operands[-1]


def _add(op: Add, plan: Plan) -> Tensor:
    operands = (plan.read(op), plan.read(op, 1), plan.result(op))
    coefficients = numerics.add_coefficients(
        op.a.scale, op.a.zero_point, op.b.scale, op.b.zero_point, op.grid.scale,
        op.grid.zero_point,
    )  # fmt: skip
    numbers = (*map(float, coefficients), *window_before(op))
    spread(plan, op.name, elementwise.add, operands, *numbers)
    return operands[-1]


def _mul(op: Mul, plan: Plan) -> Tensor:
    operands = (plan.read(op), plan.read(op, 1), plan.result(op))
    factor = numerics.multiply_factor(op.a.scale, op.b.scale, op.grid.scale)
    zeros = (op.a.zero_point - SHIFT, op.b.zero_point - SHIFT)
    numbers = (*zeros, float(factor), float(op.grid.zero_point), *window_before(op))
    spread(plan, op.name, elementwise.multiply, operands, *numbers)
    return operands[-1]


def _lookup(op: Lookup, plan: Plan) -> Tensor:
    operands = (plan.read(op), plan.result(op))
    table = plan.constant(op, "table", lambda: (op.table.astype(int) - SHIFT).astype(np.int8))
    spread(plan, op.name, elementwise.look_up, operands, table)
    return operands[-1]


def _island(op: Island, plan: Plan) -> Tensor:
    """Refuse: floating point that only ONNX Runtime defines."""
    raise UnsupportedError(
        f"layer {op.name}: {', '.join(op.operators)} in floating point "
        "(--allow-float), which runtime triton does not have; --runtime ort has it"
    )


OPERATORS: dict[type[Op], Callable[[Any, Plan], Tensor]] = {
    Quantize: _quantize, Conv: layers.conv, Gemm: layers.gemm, FloatGemm: layers.gemm,
    Add: _add, Mul: _mul, Average: layers.average, Lookup: _lookup, Island: _island,
    MaxPool: layers.max_pool, Reshape: moves.reshape, Transpose: moves.transpose,
    Concat: moves.concat, Slice: moves.slice_, Pad: moves.pad, Upsample: moves.upsample,
}  # fmt: skip
