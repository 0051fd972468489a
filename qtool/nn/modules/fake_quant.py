"""The quantizer of a tensor between operators: a layer's input, the image, glue, an output."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from qtool.core.bank import Bank
from qtool.core.grids import MIN_STEP, activation_window
from qtool.nn.modules.prologue import Prologue
from qtool.nn.modules.quantizer import Quantizer, Role
from qtool.nn.ops.int_grid import IntGrid
from qtool.nn.ops.on_grid import quantized, values
from qtool.quantizers import activation_quantizer
from qtool.quantizers.activation import UniformArgs
from qtool.quantizers.lsq_plus import zero_points
from qtool.quantizers.uniform import uniform


class FakeQuantizer(Quantizer):
    """Fake quantization of activations with candidate bit-widths.

    Its parameters are, by quantizer: ``step`` (rows of the bank, 1), ``alpha`` (rows,),
    ``offset`` (rows,). The integer buffer ``zero_point`` always has an entry for each
    candidate, which starts as `qtool.core.grids.activation_window` has it. Any other zero
    point z of b bits means the asymmetric window [0, 2^b - 1] with value 0 at code z.

    Args:
        name: the layer (or glue tensor) it belongs to, as in bits.json.
        role: "activation" (a layer's input), "glue", "input" or "output".
        bits: candidates; the first one is selected at the start.
        signed: window around 128 instead of [0, 2^b - 1].
        step: fixed (not learned) step, float.
        asymmetric: calibration chooses the zero point too (signed tensors only).
        ceiling: largest value that the tensor can have (6 behind a ReLU6). In training the
            step never grows beyond what it needs: codes above it would be wasted, and the
            device would clip them away in a pass of its own.
        kind: a key of `qtool.quantizers.QUANTIZERS`.
        shared: the candidates share their learned parameters.
    """

    step: Tensor
    zero_point: Tensor

    def __init__(
        self,
        name: str,
        role: Role,
        bits: Sequence[int],
        signed: bool,
        step: float | None = None,
        asymmetric: bool = False,
        ceiling: float = math.inf,
        kind: str = "lsq",
        shared: bool = False,
    ) -> None:
        rule = activation_quantizer(kind)
        is_fixed = step is not None or rule.fixed_alpha is not None
        super().__init__(name, role, Bank(tuple(bits), shared and not is_fixed), signed)
        self.kind, self.rule, self.ceiling = kind, rule, ceiling
        # Of what every candidate has for itself.
        self.windows = Bank(self.bits)
        self.default_zero_points = tuple(
            activation_window(b, signed).zero_point for b in self.bits
        )
        # What the buffer holds, readable on any device (or none: meta).
        self.zero_points = self.default_zero_points
        self.register_buffer("zero_point", torch.tensor(self.zero_points))
        self.asymmetric = False
        if is_fixed:
            fixed = [[step or rule.fixed_step(*self.limits(b))] for b in self.bits]
            self.register_buffer("step", torch.tensor(fixed))
        else:
            self._add_parameters(asymmetric)
        # What `limit` clamps to, behind what it follows from.
        self._limits: tuple[Any, tuple[Tensor, Tensor]] | None = None
        # In a tuple, because its modules belong to the network; at most one.
        self._prologue: tuple[Prologue, ...] = ()

    def _add_parameters(self, asymmetric: bool) -> None:
        has_step, rows = self.rule.parameter == "step", self.bank.rows
        start = torch.ones((rows, 1) if has_step else (rows,))
        self.register_parameter(self.rule.parameter, nn.Parameter(start))
        self.asymmetric = self.signed and has_step and (asymmetric or self.rule.has_offset)
        if self.signed and self.rule.has_offset:
            self.register_parameter("offset", nn.Parameter(torch.zeros(rows)))
            self._follow_offset()

    @property
    def offsets(self) -> nn.Parameter | None:
        """The learned offsets (rows,); None where there are none."""
        return self._parameters.get("offset")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Load as usual; a state from before zero points existed has the default ones."""
        default = torch.tensor(self.default_zero_points)
        state_dict.setdefault(f"{prefix}zero_point", default)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.set_zero_points(self.zero_point.tolist())

    def set_zero_points(self, values: Sequence[int]) -> None:
        """Give every candidate its zero point."""
        self.zero_points = tuple(values)
        self.zero_point.copy_(torch.tensor(self.zero_points))

    @torch.no_grad()
    def _follow_offset(self) -> None:
        """Round learned offsets to integer zero points; no other place waits for a GPU."""
        offset = self.offsets
        if offset is None:
            return
        highest = offset.new_tensor([(1 << bits) - 1 for bits in self.bits])
        steps = self.step[:, 0].abs().clamp_min(MIN_STEP)
        found = zero_points(steps, offset, highest).int().tolist()
        if tuple(found) != self.zero_points:
            self.set_zero_points(found)

    def train(self, mode: bool = True) -> "FakeQuantizer":
        """Set the mode; zero points catch up with the optimizer's last step."""
        self._follow_offset()
        super().train(mode)
        return self

    def limits(self, bits: int) -> tuple[int, int]:
        """Return (Qn, Qp): the number of negative and positive codes at `bits`."""
        row = self.windows.row(bits)
        zero_point = self.zero_points[row]
        if zero_point != self.default_zero_points[row]:
            return zero_point, (1 << bits) - 1 - zero_point
        window = activation_window(bits, self.signed)
        return window.zero_point - window.lo, window.hi - window.zero_point

    def scale(self, bits: int) -> Tensor:
        """Return the positive step at `bits`, a scalar."""
        return self.rule.step(self._value(bits), *self.limits(bits))

    def _value(self, bits: int) -> Tensor:
        """Return the parameter of the step at `bits`, a scalar."""
        alpha = self._parameters.get("alpha")
        values = self.step if alpha is None else alpha
        if self.bank.rows == 1:  # a view is cheaper than a row where there is only one
            return values.reshape(())
        return values.reshape(-1)[self.bank.row(bits)]

    def uniform_args(self, bits: int, count: int) -> UniformArgs:
        """Return how `uniform` quantizes `count` elements at `bits`."""
        offset = self.offsets
        return self.rule.arguments(
            self._value(bits), None if offset is None else offset[self.bank.row(bits)],
            *self.limits(bits), count,
        )  # fmt: skip

    def quantize_at(self, x: Tensor, bits: int) -> Tensor:
        """Fake-quantize `x` at one candidate."""
        return uniform(x, *self.uniform_args(bits, x.numel()))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the selected grid (same shape and dtype)."""
        if torch.onnx.is_in_onnx_export():
            usual = self.zero_points == self.default_zero_points
            return self._traced(x, () if usual else self.zero_points)
        if self.training:
            self.limit()
            for prologue in self._prologue:
                if self.selected is not None and self.mix is None:
                    return prologue.quantize(x, self.uniform_args(self.selected, x.numel()))
                x = prologue.apply(x)
        if self.follows_device(x):
            found = quantized(x, self.int_grid())
            # Whoever reads the network's output wants plain numbers.
            return values(found) if self.role == "output" else found
        return self.quantize(x)

    def int_grid(self) -> IntGrid:
        """Return the selected grid as numbers."""
        bits = cast(int, self.selected)
        zero_point = self.zero_points[self.windows.row(bits)]
        window = activation_window(bits, self.signed, zero_point)
        scale = np.float32(self.scale(bits).item())
        return IntGrid(scale, window.zero_point, window.lo, window.hi)

    def unrounded(self, x: Tensor) -> Tensor:
        """Return what ``forward`` rounds when it is given `x`: behind what was left to it."""
        for prologue in self._prologue if self.training else ():
            x = prologue.apply(x)
        return x

    def defer(self, prologue: Prologue) -> None:
        """Compute `prologue` too, in training: its parts leave their work to this."""
        self._prologue = (prologue,)

    @torch.no_grad()
    def limit(self) -> None:
        """Bring learned steps down to where the largest code is `ceiling`."""
        self._follow_offset()
        if self.ceiling == math.inf or self.learned is None:
            return
        parameter = self._parameters[self.learned]
        if parameter is not None:
            parameter.clamp_(*self._bounds(parameter))

    def _bounds(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the largest value of every row; they are made once."""
        follows_from = (self.zero_points, self.ceiling, parameter.device, parameter.dtype)
        if self._limits is None or self._limits[0] != follows_from:
            ends = [self._largest(bits) for bits in self.bits]
            rows = parameter.new_tensor([max(ends)] if self.bank.shared else ends)
            largest = rows.reshape(-1, *[1] * (parameter.ndim - 1))
            self._limits = follows_from, (-largest, largest)
        return self._limits[1]

    def _largest(self, bits: int) -> float:
        qn, qp = self.limits(bits)
        return self.ceiling / max(qp, 1) * self.rule.steps_per_parameter(qn, qp)

    @torch.no_grad()
    def bake(self) -> None:
        """Compute, for a trace, steps that the device shall not compute again."""
        if not self._has_all_steps:
            self._bake([self.scale(bits) for bits in self.bits])
