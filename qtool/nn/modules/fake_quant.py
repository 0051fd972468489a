"""The module that stands on every quantized edge of a network in training.

It holds the quantizer's parameters for each candidate bit-width ("branch", MetaMix section
3.2), or one set for all, and applies one candidate, none (float), or a weighted sum of all.
While tracing for export it becomes one ``qtool::FakeQuant`` node that still holds every
candidate.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qtool.core.grids import FLOAT_WIDTHS, MIN_STEP, activation_window, weight_limit
from qtool.nn.modules.prologue import Prologue
from qtool.nn.ops.fake_quant_op import fake_quant_op
from qtool.nn.ops.fit_steps import covering, least_squares
from qtool.nn.ops.mixture import mixed, mixed_fixed
from qtool.quantizers import activation_quantizer, weight_quantizer
from qtool.quantizers.activation import UniformArgs
from qtool.quantizers.lsq_plus import zero_points
from qtool.quantizers.uniform import uniform
from qtool.quantizers.weight import WeightOptions

Role = Literal["activation", "weight", "glue", "input", "output"]
_SAMPLES = 1 << 16


class FakeQuantizer(nn.Module):
    """Fake quantization with candidate bit-widths.

    Its parameters are, by quantizer: ``step`` (candidates, channels), ``alpha`` (candidates,),
    ``offset`` (candidates,); one row where the candidates share them.
    Activations have an integer buffer ``zero_point`` (candidates,), which starts as
    `qspec.activation_window` has it. Any other zero point z of b bits means the asymmetric
    window [0, 2^b - 1] with value 0 at code z.

    Args:
        name: the layer (or glue tensor) it belongs to, as in bits.json.
        role: "activation" (a layer's input), "weight", "glue", "input" or "output".
        bits: candidates; the first one is selected at the start. A weight of 16 or 32 bits
            stays float.
        signed: activations: window around 128 instead of [0, 2^b - 1].
        channels: output channels of a weight, else 1.
        step: fixed (not learned) step, float.
        asymmetric: calibration chooses the zero point too (signed activations only).
        ceiling: largest value that the tensor can have (6 behind a ReLU6). In training the
            step never grows beyond what it needs: codes above it would be wasted, and the
            device would clip them away in a pass of its own.
        kind: a key of `qtool.quantizers.QUANTIZERS`.
        shared: the candidates share their parameters.
        options: of weights; None: as the quantizer was published.
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
        kind: str = "lsq",
        shared: bool = False,
        options: WeightOptions | None = None,
    ) -> None:
        super().__init__()
        self.name, self.role, self.bits, self.signed = name, role, tuple(bits), signed
        self.kind, self.ceiling = kind, ceiling
        # Rows of every parameter.
        self.rows = 1 if shared else len(self.bits)
        self.asymmetric = False
        self.default_zero_points = tuple(activation_window(b, signed).zero_point for b in bits)
        # What the buffer holds, readable on any device (or none: meta).
        self.zero_points = self.default_zero_points
        if role == "weight":
            self._add_weight_step(channels, options)
        else:
            self.register_buffer("zero_point", torch.tensor(self.zero_points))
            self._add_activation_parameters(step, asymmetric)
        self.selected: int | None = None
        self.mix: Tensor | None = None
        # Of `mix`: nothing but its weights is trained.
        self.is_fixed = False
        self.observed: Tensor | None = None
        self.observing = False
        # In a tuple, because its modules belong to the network; at most one.
        self._prologue: tuple[Prologue, ...] = ()

    def _add_weight_step(self, channels: int, options: WeightOptions | None) -> None:
        make = weight_quantizer(self.kind)
        options = options or WeightOptions(make.per_channel)
        self.weights = make(options)
        if self.weights.learned and self.default is not None:
            width = channels if options.per_channel else 1
            self.step = nn.Parameter(torch.ones(self.rows, width))

    def _add_activation_parameters(self, step: float | None, asymmetric: bool) -> None:
        self.grids = activation_quantizer(self.kind)
        if step is not None or self.grids.fixed_alpha is not None:
            self.rows = len(self.bits)
            fixed = [[step or self.grids.fixed_step(*self.limits(bits))] for bits in self.bits]
            self.register_buffer("step", torch.tensor(fixed))
            return
        has_step = self.grids.parameter == "step"
        start = torch.ones((self.rows, 1) if has_step else (self.rows,))
        self.register_parameter(self.grids.parameter, nn.Parameter(start))
        self.asymmetric = self.signed and has_step and (asymmetric or self.grids.has_offset)
        if self.signed and self.grids.has_offset:
            self.register_parameter("offset", nn.Parameter(torch.zeros(self.rows)))
            self._follow_offset()

    def _get(self, name: str) -> nn.Parameter | None:
        return self._parameters.get(name)

    @property
    def default(self) -> int | None:
        """The first candidate; None where that is floating point."""
        return None if self.bits[0] in FLOAT_WIDTHS else self.bits[0]

    @property
    def learned(self) -> str | None:
        """Name of the parameter that steps come from; None: they are fixed or computed."""
        return next((name for name in ("step", "alpha") if name in self._parameters), None)

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

    @torch.no_grad()
    def _follow_offset(self) -> None:
        """Round learned offsets to integer zero points; no other place waits for a GPU."""
        offset = self._get("offset")
        if offset is None:
            return
        highest = offset.new_tensor([(1 << bits) - 1 for bits in self.bits])
        steps = self.step[:, 0].abs().clamp_min(MIN_STEP)
        found = zero_points(steps, offset, highest).int().tolist()
        if tuple(found) != self.zero_points:
            self._set_zero_points(found)

    def train(self, mode: bool = True) -> "FakeQuantizer":
        """Set the mode; zero points catch up with the optimizer's last step."""
        self._follow_offset()
        super().train(mode)
        return self

    def _row(self, bits: int) -> int:
        return self.bits.index(bits) if self.rows > 1 else 0

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

    def scale(self, bits: int, weight: Tensor | None = None) -> Tensor:
        """Return the positive step at `bits`: scalar; for weights (C,) or (1,).

        Args:
            bits: a candidate.
            weight: the weights (C, ...), which some quantizers compute their scale from.
        """
        if self.role != "weight":
            return self.grids.step(self._value(bits), *self.limits(bits))
        given = self.step if weight is None else weight
        return self.weights.scale(given, bits, self._weight_step(bits))

    def _value(self, bits: int) -> Tensor:
        """Return the parameter of an activation's step, a scalar."""
        alpha = self._get("alpha")
        values = self.step if alpha is None else alpha
        # A view is cheaper than a row where there is only one.
        return values.reshape(()) if self.rows == 1 else values.reshape(-1)[self._row(bits)]

    def _weight_step(self, bits: int) -> Tensor | None:
        if not self.learned:
            return None
        return self.step.squeeze(0) if self.rows == 1 else self.step[self._row(bits)]

    def uniform_args(self, bits: int, count: int) -> UniformArgs:
        """Return how `uniform` quantizes an activation of `count` elements at `bits`."""
        offset = self._get("offset")
        return self.grids.arguments(
            self._value(bits), None if offset is None else offset[self._row(bits)],
            *self.limits(bits), count,
        )  # fmt: skip

    def quantize_at(self, x: Tensor, bits: int) -> Tensor:
        """Fake-quantize `x` at one candidate."""
        if self.role == "weight":
            return self.weights.quantize(x, bits, self._weight_step(bits))
        return uniform(x, *self.uniform_args(bits, x.numel()))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the selected grid (same shape and dtype)."""
        if torch.onnx.is_in_onnx_export():
            return self._traced(x)
        if self.training:
            self.limit()
            for prologue in self._prologue:
                plain = self.mix is None and not self.observing
                if self.selected is not None and plain:
                    return prologue.quantize(x, self.uniform_args(self.selected, x.numel()))
                x = prologue.apply(x)
        if self.observing:
            self._observe(x)
        if self.mix is not None:
            return (mixed_fixed if self.is_fixed else mixed)(self, x, self.mix)
        return x if self.selected is None else self.quantize_at(x, self.selected)

    def unrounded(self, x: Tensor) -> Tensor:
        """Return what `forward` rounds when it is given `x`: behind what was left to it."""
        for prologue in self._prologue if self.training else ():
            x = prologue.apply(x)
        return x

    def defer(self, prologue: Prologue) -> None:
        """Compute `prologue` too, in training: its parts leave their work to this."""
        self._prologue = (prologue,)

    def _traced(self, x: Tensor) -> Tensor:
        baked = dict(self.named_buffers(recurse=False))
        source = baked.get("baked_source")
        default = self.zero_points == self.default_zero_points
        out: Tensor = fake_quant_op(
            x if source is None else source,
            baked["baked_steps"] if "baked_steps" in baked else self.step,
            self.name, self.role, list(self.bits), self.signed,
            [] if default else list(self.zero_points),
            self.weights.scheme if self.role == "weight" else "symmetric",
            None if source is None else x,
        )  # fmt: skip
        return out

    @torch.no_grad()
    def bake(self, weight: Tensor | None = None) -> None:
        """Compute, for `qtool.export.trace`, what the device shall not compute again.

        Args:
            weight: the layer's, where this is its weight quantizer.
        """
        if "step" in {**self._parameters, **self._buffers} and self.rows == len(self.bits):
            return
        known = [bits for bits in self.bits if bits not in FLOAT_WIDTHS]
        steps = [self.scale(bits, weight).reshape(-1) for bits in known]
        stacked = torch.stack(steps) if steps else torch.ones(1, 1)
        self.register_buffer("baked_steps", stacked, persistent=False)
        if weight is not None and steps and self.weights.scheme != "symmetric":
            source = self.weights.source(weight)
            self.register_buffer("baked_source", source, persistent=False)

    def unbake(self) -> None:
        """Forget what `bake` computed."""
        for name in ("baked_steps", "baked_source"):
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)

    def _observe(self, x: Tensor) -> None:
        flat = x.detach().reshape(-1)
        # Odd: an even stride would meet the same columns of every image and no others.
        stride = flat.numel() // _SAMPLES | 1
        self.observed = flat[::stride].clone()

    @torch.no_grad()
    def initialise(self, values: Tensor) -> None:
        """Set learned parameters to the least-squares grid of `values` ((C, ...) for weights).

        Candidates that share a parameter get the geometric mean of their own ones.
        """
        if self.learned is None:
            return
        channels = self.step.shape[1] if self.learned == "step" else 1
        rows = values.detach().reshape(channels, -1)
        limits = [self.limits(bits) for bits in self.bits]
        if self.role == "weight":
            limits = [
                (0, 0) if b == 1 else at for b, at in zip(self.bits, limits, strict=True)
            ]
        fit = least_squares(rows, self.bits, limits, self.zero_points, self.asymmetric)
        self._set_steps(*fit)

    def _set_steps(self, steps: Tensor, zeros: list[int]) -> None:
        """Take over steps (candidates, channels) and, where asymmetric, zero points."""
        parameter, offset = self.get_parameter(str(self.learned)), self._get("offset")
        steps = steps.to(parameter.device)
        if self.asymmetric:
            self._set_zero_points(zeros)
        if offset is not None:
            starts = -steps[:, 0] * steps.new_tensor(zeros)
            offset.copy_(starts if self.rows > 1 else starts.mean())
        if self.role != "weight":
            units = [self.grids.steps_per_parameter(*self.limits(b)) for b in self.bits]
            steps = steps * steps.new_tensor(units)[:, None]
        if self.rows < len(self.bits):
            steps = steps.clamp_min(MIN_STEP).log().mean(0, keepdim=True).exp()
        parameter.copy_(steps.reshape(parameter.shape))
        self.limit()

    @torch.no_grad()
    def limit(self) -> None:
        """Bring learned steps down to where the largest code is `ceiling`."""
        self._follow_offset()
        if self.learned is None or self.ceiling == math.inf or self.role == "weight":
            return
        parameter = self._parameters[self.learned]
        ends = [self._largest(bits) for bits in self.bits]
        for row, largest in enumerate(ends if self.rows > 1 else [max(ends)]):
            parameter[row].clamp_(-largest, largest)  # type: ignore[index]

    def _largest(self, bits: int) -> float:
        qn, qp = self.limits(bits)
        return self.ceiling / max(qp, 1) * self.grids.steps_per_parameter(qn, qp)

    @torch.no_grad()
    def cover(self, low: float, high: float) -> None:
        """Set learned steps to the smallest with which `low` to `high` lies on the grid.

        Args:
            low: smallest value of an activation; 0 is always on the grid too.
            high: largest value.
        """
        if self.learned is None:
            return
        limits = [self.limits(bits) for bits in self.bits]
        fit = covering(low, high, self.bits, limits, self.zero_points, self.asymmetric)
        self._set_steps(*fit)
