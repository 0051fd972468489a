"""Fits the grids of quantizers to values: every row of their banks at once.

Candidates that share a learned parameter get the geometric mean of what each would have alone.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qtool.core.bank import Bank
from qtool.core.grids import MIN_STEP
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.weight_quant import WeightQuantizer
from qtool.nn.ops.fit_steps import Fit, covering, least_squares

_SAMPLES = 1 << 16


@contextmanager
def observed(quantizers: Iterable[FakeQuantizer]) -> Iterator[dict[FakeQuantizer, Tensor]]:
    """Within this context, keep a sample of what each of `quantizers` was given last.

    The network is in evaluation mode: in training a quantizer may be given what is in front of
    a norm or an activation function.
    """
    seen: dict[FakeQuantizer, Tensor] = {}

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(module, FakeQuantizer):
            seen[module] = _sample(args[0])

    hooks = [quantizer.register_forward_pre_hook(look) for quantizer in quantizers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _sample(x: Tensor) -> Tensor:
    flat = x.detach().reshape(-1)
    # Odd: an even stride would meet the same columns of every image and no others.
    return flat[:: flat.numel() // _SAMPLES | 1].clone()


@torch.no_grad()
def fit_weights(quantizer: WeightQuantizer, weight: Tensor) -> None:
    """Set learned steps to the least-squares grids of `weight` (C, ...)."""
    if quantizer.learned is None:
        return
    rows, bits = weight.detach().reshape(quantizer.step.shape[1], -1), quantizer.bits
    stored = quantizer.rule.stored
    if stored:  # one bit's scale is no multiple of the stored codes' step
        bits = tuple(width for width in bits if width > 1) or (stored,)
    # One bit has the codes -1 and 1, and no 0.
    limits = [(0, 0) if width == 1 else quantizer.limits(width) for width in bits]
    steps, _ = least_squares(rows, bits, limits, (0,) * len(limits), False)
    if stored:
        steps = steps / steps.new_tensor([2.0 ** (stored - width) for width in bits])[:, None]
    _store(quantizer.get_parameter("step"), steps, quantizer.bank)


@torch.no_grad()
def fit_values(quantizer: FakeQuantizer, values: Tensor) -> None:
    """Set learned parameters to the least-squares grids of `values`, of any shape."""
    if quantizer.learned is not None:
        limits = [quantizer.limits(bits) for bits in quantizer.bits]
        fit = least_squares(
            values.detach().reshape(1, -1), quantizer.bits, limits, quantizer.zero_points,
            quantizer.asymmetric,
        )  # fmt: skip
        _take(quantizer, fit)


@torch.no_grad()
def cover(quantizer: FakeQuantizer, low: float, high: float) -> None:
    """Set learned steps to the smallest with which `low` to `high` lies on the grids.

    Args:
        quantizer: of an activation.
        low: smallest value; 0 is always on the grid too.
        high: largest value.
    """
    if quantizer.learned is not None:
        limits = [quantizer.limits(bits) for bits in quantizer.bits]
        fit = covering(
            low, high, quantizer.bits, limits, quantizer.zero_points, quantizer.asymmetric
        )
        _take(quantizer, fit)


def _take(quantizer: FakeQuantizer, fit: Fit) -> None:
    """Give `quantizer` steps (candidates, 1) and, where it is asymmetric, zero points."""
    parameter, offset = quantizer.get_parameter(str(quantizer.learned)), quantizer.offsets
    steps, zeros = fit[0].to(parameter.device), fit[1]
    if quantizer.asymmetric:
        quantizer.set_zero_points(zeros)
    if offset is not None:
        starts = -steps[:, 0] * steps.new_tensor(zeros)
        offset.copy_(starts.mean() if quantizer.bank.shared else starts)
    units = [
        quantizer.rule.steps_per_parameter(*quantizer.limits(bits)) for bits in quantizer.bits
    ]
    _store(parameter, steps * steps.new_tensor(units)[:, None], quantizer.bank)
    quantizer.limit()


def _store(parameter: nn.Parameter, values: Tensor, bank: Bank[int]) -> None:
    """Write `values` (candidates, channels) into the rows of `parameter`."""
    values = values.to(parameter.device)
    if bank.rows < len(values):
        values = values.clamp_min(MIN_STEP).log().mean(0, keepdim=True).exp()
    parameter.copy_(values.reshape(parameter.shape))
