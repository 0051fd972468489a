"""The module that stands on every quantized edge of a network in training.

It holds one LSQ step per candidate bit-width ("branch", MetaMix section 3.2) and applies one
of them, none (float), or a weighted sum of all. While tracing for export it becomes one
``qtool::FakeQuant`` node that still holds every candidate.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qtool.qspec import MIN_STEP, activation_window, weight_limit
from qtool.quantizers.binary import binary, binary_step
from qtool.quantizers.lsq import lsq, mse_grid, mse_step

Role = Literal["activation", "weight", "glue", "input", "output"]
_SAMPLES = 1 << 16


@torch.library.custom_op("qtool::fake_quant", mutates_args=())
def fake_quant_op(
    x: Tensor,
    steps: Tensor,
    name: str,
    role: str,
    bits: list[int],
    signed: bool,
    zero_points: list[int],
) -> Tensor:
    """Placeholder that `qtool.trace` translates; only its shape matters."""
    return x.clone()


@fake_quant_op.register_fake
def _(
    x: Tensor,
    steps: Tensor,
    name: str,
    role: str,
    bits: list[int],
    signed: bool,
    zero_points: list[int],
) -> Tensor:
    return torch.empty_like(x)


class FakeQuantizer(nn.Module):
    """LSQ fake quantization with candidate bit-widths.

    Activations have an integer buffer ``zero_point`` (candidates,), which starts as
    `qspec.activation_window` has it. Any other zero point z of b bits means the asymmetric
    window [0, 2^b - 1] with value 0 at code z.

    Args:
        name: the layer (or glue tensor) it belongs to, as in bits.json.
        role: "activation" (a layer's input), "weight", "glue", "input" or "output".
        bits: candidates; the first one is selected at the start.
        signed: activations: window around 128 instead of [0, 2^b - 1].
        channels: steps per candidate: output channels for weights, else 1.
        step: fixed (not learned) step, float.
        asymmetric: calibration chooses the zero point too (signed activations only).
        ceiling: largest value that the tensor can have (6 behind a ReLU6). In training the
            step never grows beyond what it needs: codes above it would be wasted, and the
            device would clip them away in a pass of its own.
    """

    step: Tensor
    zero_point: Tensor

    def __init__(
        self,
        name: str,
        role: Role,
        bits: Sequence[int],
        signed: bool,
        channels: int = 1,
        step: float | None = None,
        asymmetric: bool = False,
        ceiling: float = math.inf,
    ) -> None:
        super().__init__()
        self.name, self.role, self.bits, self.signed = name, role, tuple(bits), signed
        start = torch.full((len(self.bits), channels), step or 1.0)
        if step is None:
            self.step = nn.Parameter(start)
        else:
            self.register_buffer("step", start)
        self.ceiling = ceiling
        self.asymmetric = asymmetric and signed and step is None and role != "weight"
        self.default_zero_points = tuple(activation_window(b, signed).zero_point for b in bits)
        # What the buffer holds, readable on any device (or none: meta).
        self.zero_points = self.default_zero_points
        if role != "weight":
            self.register_buffer("zero_point", torch.tensor(self.zero_points))
        self.selected: int | None = None
        self.mix: Tensor | None = None
        self.observed: Tensor | None = None
        self.observing = False

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Load as usual; a state from before zero points existed has the default ones."""
        if self.role != "weight":
            default = torch.tensor(self.default_zero_points)
            state_dict.setdefault(f"{prefix}zero_point", default)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.role != "weight":
            self._set_zero_points(self.zero_point.tolist())

    def _set_zero_points(self, values: Sequence[int]) -> None:
        self.zero_points = tuple(values)
        self.zero_point.copy_(torch.tensor(self.zero_points))

    def limits(self, bits: int) -> tuple[int, int]:
        """Return (Qn, Qp): the number of negative and positive codes at `bits`."""
        if self.role == "weight":
            return weight_limit(bits), weight_limit(bits)
        index = self.bits.index(bits)
        zero_point = self.zero_points[index]
        if zero_point != self.default_zero_points[index]:
            return zero_point, (1 << bits) - 1 - zero_point
        window = activation_window(bits, self.signed)
        return window.zero_point - window.lo, window.hi - window.zero_point

    def scale(self, bits: int) -> Tensor:
        """Return the positive step at `bits`: scalar, or (C,) for weights."""
        step = self.step[self.bits.index(bits)].abs().clamp_min(MIN_STEP)
        return step if self.role == "weight" else step[0]

    def quantize_at(self, x: Tensor, bits: int) -> Tensor:
        """Fake-quantize `x` at one candidate."""
        step = self.scale(bits)
        if step.ndim:
            step = step.reshape(-1, *[1] * (x.ndim - 1))
        if self.role == "weight" and bits == 1:
            return binary(x, step)
        return lsq(x, step, *self.limits(bits))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the selected grid (same shape and dtype)."""
        if torch.onnx.is_in_onnx_export():
            default = self.zero_points == self.default_zero_points
            out: Tensor = fake_quant_op(
                x, self.step, self.name, self.role, list(self.bits), self.signed,
                [] if default else list(self.zero_points),
            )  # fmt: skip
            return out
        if self.training:
            self.limit()
        if self.observing:
            self._observe(x)
        if self.mix is not None:
            parts = (
                w * self.quantize_at(x, b) for w, b in zip(self.mix, self.bits, strict=True)
            )
            return torch.stack(tuple(parts)).sum(0)
        return x if self.selected is None else self.quantize_at(x, self.selected)

    def _observe(self, x: Tensor) -> None:
        flat = x.detach().reshape(-1)
        self.observed = flat[:: max(1, flat.numel() // _SAMPLES)].clone()

    @torch.no_grad()
    def initialise(self, values: Tensor) -> None:
        """Set learned steps to the least-squares ones for `values` ((C, ...) for weights)."""
        if not isinstance(self.step, nn.Parameter):
            return
        rows = values.detach().reshape(self.step.shape[1], -1)
        zero_points = list(self.zero_points)
        for index, bits in enumerate(self.bits):
            if self.asymmetric:
                self.step[index], zero_points[index] = mse_grid(rows, bits)
            elif self.role == "weight" and bits == 1:
                self.step[index] = binary_step(rows)[:, 0]
            else:
                self.step[index] = mse_step(rows, *self.limits(bits))[:, 0]
        if self.asymmetric:
            self._set_zero_points(zero_points)
        self.limit()

    @torch.no_grad()
    def limit(self) -> None:
        """Bring learned steps down to where the largest code is `ceiling`."""
        if isinstance(self.step, nn.Parameter) and self.ceiling < math.inf:
            for index, bits in enumerate(self.bits):
                largest = self.ceiling / max(self.limits(bits)[1], 1)
                self.step[index].clamp_(-largest, largest)

    @torch.no_grad()
    def cover(self, low: float, high: float) -> None:
        """Set learned steps to the smallest with which `low` to `high` lies on the grid.

        Args:
            low: smallest value of an activation; 0 is always on the grid too.
            high: largest value.
        """
        if not isinstance(self.step, nn.Parameter):
            return
        low, high, zero_points = min(low, 0.0), max(high, 0.0), list(self.zero_points)
        for index, bits in enumerate(self.bits):
            if self.asymmetric:
                codes = (1 << bits) - 1
                zero_points[index] = round(codes * -low / max(high - low, MIN_STEP))
                below, above = zero_points[index], codes - zero_points[index]
            else:
                below, above = self.limits(bits)
            sides = (-low / max(below, 1), high / max(above, 1))
            self.step[index] = max(*sides, MIN_STEP)
        if self.asymmetric:
            self._set_zero_points(zero_points)
