"""What every quantizer of a network in training has: candidates, and which of them it applies.

The candidates are bit-widths ("branches", MetaMix section 3.2). A quantizer applies one of
them, none (floating point), or a weighted sum of all. Its learned parameters are banks
(`qtool.core.bank`): a row for each candidate, or one that all share. While tracing for export
it becomes one ``qtool::FakeQuant`` node that still holds every candidate.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from qtool.core.bank import Bank
from qtool.core.grids import FLOAT_WIDTHS, HALF
from qtool.nn.ops.fake_quant_op import fake_quant_op
from qtool.nn.ops.half import half
from qtool.nn.ops.mixture import mixed, mixed_fixed

# What the adaptive graph says of the tensor; no code here asks for it.
Role = Literal["activation", "weight", "glue", "input", "output"]


class Quantizer(nn.Module, ABC):
    """Fake quantization with candidate bit-widths.

    Args:
        name: the layer (or glue tensor) it belongs to, as in bits.json.
        role: "activation" (a layer's input), "weight", "glue", "input" or "output".
        bank: the candidates, and whether they share the learned parameters' rows; the first
            one is selected at the start.
        signed: whether codes are on both sides of 0.
    """

    def __init__(self, name: str, role: Role, bank: Bank[int], signed: bool) -> None:
        super().__init__()
        self.name, self.role, self.bank, self.signed = name, role, bank, signed
        self.selected: int | None = None
        self.mix: Tensor | None = None
        # Where nothing is selected: values are rounded to float16.
        self.is_half = False
        # The layer has its first candidate whatever a selection's default asks.
        self.keeps_bits = False
        # Of `mix`: nothing but its weights is trained.
        self.is_fixed = False

    @property
    def bits(self) -> tuple[int, ...]:
        """The candidates."""
        return self.bank.keys

    @property
    def default(self) -> int | None:
        """The first candidate; None where that is floating point."""
        return None if self.bits[0] in FLOAT_WIDTHS else self.bits[0]

    @property
    def learned(self) -> str | None:
        """Name of the parameter that steps come from; None: they are fixed or computed."""
        return next((name for name in ("step", "alpha") if name in self._parameters), None)

    @abstractmethod
    def limits(self, bits: int) -> tuple[int, int]:
        """Return (Qn, Qp): the number of negative and positive codes at `bits`."""

    @abstractmethod
    def scale(self, bits: int) -> Tensor:
        """Return the positive step at `bits`: scalar; of weights (C,) or (1,)."""

    @abstractmethod
    def quantize_at(self, x: Tensor, bits: int) -> Tensor:
        """Fake-quantize `x` at one candidate."""

    @property
    def is_on(self) -> bool:
        """True where it rounds to one grid: neither floating point nor a mixture."""
        return self.selected is not None and self.mix is None

    def follows_device(self, x: Tensor) -> bool:
        """True where `x` is to get the integers that the device has.

        That is in evaluation without gradients. With gradients, which integers have none of,
        sums are those of float32, and may cross a rounding boundary.
        """
        off = self.training or torch.is_grad_enabled() or torch.onnx.is_in_onnx_export()
        return self.is_on and not off and x.device.type != "meta"

    def quantize(self, x: Tensor) -> Tensor:
        """Return `x` on the selected grid, or a mixture of grids (same shape and dtype)."""
        if self.mix is not None:
            return (mixed_fixed if self.is_fixed else mixed)(self, x, self.mix)
        if self.selected is None:
            return half(x) if self.is_half else x
        return self.quantize_at(x, self.selected)

    def choose(self, bits: int | None) -> None:
        """Apply `bits` from now on; 16 and 32, or None, are floating point."""
        selected, is_half = None if bits in FLOAT_WIDTHS else bits, bits == HALF
        # Modules look long at what they are given: every pass of a training selects.
        if (self.selected, self.is_half) != (selected, is_half):
            self.selected, self.is_half = selected, is_half
        if self.mix is not None:
            self.mix = None

    def unrounded(self, x: Tensor) -> Tensor:
        """Return what ``forward`` rounds when it is given `x`."""
        return x

    def _traced(
        self,
        x: Tensor,
        zero_points: Sequence[int] = (),
        scheme: str = "symmetric",
        plain: Tensor | None = None,
    ) -> Tensor:
        """Return the result of the node that `qtool.export.trace` makes of this quantizer.

        Args:
            x: what is rounded.
            zero_points: of every candidate; none where all are the windows' usual ones.
            scheme: how weights are rounded.
            plain: the tensor as it is without quantization, where `x` is another.
        """
        baked = dict(self.named_buffers(recurse=False)).get("baked_steps")
        steps = cast(Tensor, self.step) if baked is None else baked
        out: Tensor = fake_quant_op(
            x, steps, self.name, self.role, list(self.bits), self.signed, list(zero_points),
            scheme, plain, self.keeps_bits,
        )  # fmt: skip
        return out

    @property
    def _has_all_steps(self) -> bool:
        """True where `step` has a row for each candidate: a trace takes it as it is."""
        own = "step" in self._parameters or "step" in self._buffers
        return own and self.bank.rows == len(self.bits)

    def _bake(self, steps: Sequence[Tensor]) -> None:
        """Keep `steps`, one for each candidate that has any, for `_traced`."""
        rows = [step.reshape(-1) for step in steps]
        baked = torch.stack(rows) if rows else torch.ones(1, 1)
        self.register_buffer("baked_steps", baked, persistent=False)

    def unbake(self) -> None:
        """Forget what was computed for a trace (`qtool.nn.control.baked`)."""
        for name in ("baked_steps", "baked_source"):
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
