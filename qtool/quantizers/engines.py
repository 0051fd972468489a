"""How uniform quantization is computed: three engines, the same numbers.

eager: torch operators, anywhere.
native: C++ compiled for this CPU (`qtool.native`): one pass over memory, sums included.
compiled: the eager functions through ``torch.compile``; for GPUs.

Forward results and the gradient of x are bit-identical; gradients of steps are sums, in
another order. Which engine computes is decided where a tensor is quantized (`how`); its
backward pass is computed by the same one, wherever and whenever that runs.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from qtool.core.errors import UserError, unknown_name
from qtool.native.library import availability, call, scratch
from qtool.quantizers.grid import RULES, Grid, Rule


class How(NamedTuple):
    """How one tensor is quantized, forward and backward.

    Args:
        engine: that computes.
        rows: native: rows of the tensor that have a step of their own; else 0.
    """

    engine: Literal["native", "compiled", "eager"]
    rows: int


class Gradients(NamedTuple):
    """What backward returns.

    Args:
        x: gradient of the input, like it.
        step: gradient of the step, like it, times the factor.
        outside: sum of g over clipped values, times the factor; only rule "offset" needs it.
    """

    x: Tensor
    step: Tensor
    outside: Tensor


def forward_eager(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """Return x_hat, like `x`."""
    return (_rectified(x, grid) / step).clamp(-grid.below, grid.above).round() * step


def backward_eager(
    grad: Tensor, x: Tensor, step: Tensor, grid: Grid, rule: Rule, factor: float
) -> Gradients:
    """Return the gradients of `forward_eager` (straight through the rounding)."""
    z = _rectified(x, grid)
    v = z / step
    clipped = v.clamp(-grid.below, grid.above)
    inside = v == clipped
    kept = grad * inside
    total = outside = torch.zeros_like(step, dtype=torch.float64)
    if rule != "none":
        clipped_grad = (grad - kept).double()
        outside, total = _sum_to(clipped_grad, step), _sum_to(clipped_grad * clipped, step)
    if rule in ("lsq", "offset"):
        rest = _rounding(clipped.round(), z, step)
        total = total + _sum_to(kept.double() * rest, step) / step
    if grid.relu:
        kept = kept * ((x > 0) & (x < grid.ceiling))
    return Gradients(kept, *((t * factor).to(step.dtype) for t in (total, outside)))


def _rounding(code: Tensor, z: Tensor, step: Tensor) -> Tensor:
    """Return ``code * step - z``, what rounding added, with all its digits.

    ``round(v) - v`` loses them where v is large; products of codes with a step cut in two are
    exact.
    """
    high = _short(step)
    return (code * high - z) + code * (step - high)


def _rectified(x: Tensor, grid: Grid) -> Tensor:
    return x.clamp(0, grid.ceiling) if grid.relu else x


def _short(step: Tensor) -> Tensor:
    """Return `step` with the lower half of its digits cut off."""
    if step.dtype != torch.float32:
        return step
    return (step.view(torch.int32) & ~0xFFF).view(torch.float32)


def _sum_to(values: Tensor, step: Tensor) -> Tensor:
    if step.ndim == 0:
        return values.sum(dtype=torch.float64)
    axes = [axis for axis, size in enumerate(step.shape) if size == 1]
    return values.sum(axes, keepdim=True, dtype=torch.float64)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Triton's own division is approximate.
    options: dict[str, Any] = {"eager_numerics.division_rounding": True}
    return torch.compile(function, dynamic=True, fullgraph=True, options=options)


def how(x: Tensor, step: Tensor) -> How:
    """Return how `x` is quantized with `step` by the engine in use."""
    if rows := native_rows(x, step):
        return How("native", rows)
    return How("compiled" if _use("compiled", x) else "eager", 0)


def native_rows(x: Tensor, step: Tensor) -> int:
    """Return how many rows of `x` have a step of their own; 0: not for native kernels."""
    if not (_use("native", x) and _in_memory(x) and _in_memory(step) and _is_dense(x)):
        return 0
    if step.numel() == 1:
        return 1
    by_row = step.numel() == len(x) and step.shape[0] == len(x)
    return len(x) if by_row and step.is_contiguous() else 0


def _in_memory(x: Tensor) -> bool:
    """True when `x` is floats at an address: no fake, functional or other kind of tensor."""
    kinds = (Tensor, torch.nn.Parameter)
    plain = type(x) in kinds and x.dtype == torch.float32 and x.layout == torch.strided
    return plain and x.device.type == "cpu" and x.numel() > 0 and x.data_ptr() != 0


def _is_dense(x: Tensor) -> bool:
    if x.is_contiguous():
        return True
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def forward(x: Tensor, step: Tensor, grid: Grid, by: How) -> Tensor:
    """Return x_hat, like `x`."""
    if by.engine == "native":
        out, rows = torch.empty_like(x), by.rows
        call("qtool_quantize", x, out, rows, x.numel() // rows, step, *grid.arguments)
        return out
    if by.engine == "compiled":
        result: Tensor = _compiled(forward_eager)(x.detach(), step.detach(), grid)
        return result
    return forward_eager(x, step, grid)


def backward(
    grad: Tensor, x: Tensor, step: Tensor, grid: Grid, rule: Rule, factor: float, by: How
) -> Gradients:
    """Return the gradients; `by` is what `forward` was given."""
    if by.engine == "native":
        return _backward_native(like(grad, x), x, step, grid, rule, factor, by.rows)
    if by.engine == "compiled":
        tensors = (tensor.detach() for tensor in (grad, x, step))
        return Gradients(*_compiled(backward_eager)(*tensors, grid, rule, factor))
    return backward_eager(grad, x, step, grid, rule, factor)


def _backward_native(
    grad: Tensor, x: Tensor, step: Tensor, grid: Grid, rule: Rule, factor: float, rows: int
) -> Gradients:
    cols, out = x.numel() // rows, torch.empty_like(x)
    grads = torch.empty(2, *step.shape)
    room = scratch("qtool_quantize_scratch", rows, cols)
    call(
        "qtool_quantize_backward", grad, x, out, rows, cols, step, *grid.arguments,
        RULES.index(rule), factor, grads, room,
    )  # fmt: skip
    return Gradients(out, grads[0], grads[1])


def like(grad: Tensor, x: Tensor) -> Tensor:
    """Return `grad` with the strides of `x`."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)


ENGINES = ("auto", "native", "compiled", "eager")
_CHOSEN = ContextVar("engine", default="auto")


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Compute with engine `name` inside the block, in this thread; "auto" is the default.

    Auto is native on CPUs that have a C++ compiler, compiled on GPUs, else eager.

    Raises:
        UserError: unknown name, or no compiler for "native".
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    if name == "native" and availability().library is None:
        raise UserError(f"engine native: {availability().reason}; use eager")
    before = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(before)


def why_eager(device: torch.device) -> str:
    """Return why quantizers on `device` are computed eagerly; empty where they are not."""
    chosen = _CHOSEN.get()
    if chosen != "auto":
        return "engine eager was chosen" if chosen == "eager" else ""
    return availability().reason if device.type == "cpu" else ""


def _use(name: str, x: Tensor) -> bool:
    chosen = _CHOSEN.get()
    if chosen != "auto":
        return name == chosen
    if x.device.type == "cpu":
        return name == "native" and availability().library is not None
    return name == "compiled" and x.device.type == "cuda"
