"""The quantizer of a layer's weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qtool.core.bank import Bank
from qtool.core.grids import FLOAT_WIDTHS, weight_limit
from qtool.core.weight_codes import container_shift
from qtool.nn.modules.quantizer import Quantizer
from qtool.quantizers import weight_quantizer
from qtool.quantizers.weight import WeightOptions


class WeightQuantizer(Quantizer):
    """Fake quantization of weights (C, ...) with candidate bit-widths.

    Its one parameter, where the quantizer learns any, is ``step`` (rows of the bank, C or 1).

    Args:
        name: the layer, as in bits.json.
        bits: candidates; the first one is selected at the start. 16 or 32 bits stay float.
        channels: C.
        kind: a key of `qtool.quantizers.QUANTIZERS`.
        shared: the candidates share their steps; those of nesting codes always do.
        options: None: as the quantizer was published.
    """

    step: Tensor

    def __init__(
        self,
        name: str,
        bits: Sequence[int],
        channels: int,
        kind: str = "lsq",
        shared: bool = False,
        options: WeightOptions | None = None,
    ) -> None:
        make = weight_quantizer(kind)
        shared = shared or (make.learned and make.stored > 0)
        super().__init__(name, "weight", Bank(tuple(bits), shared), signed=True)
        self.kind = kind
        options = options or WeightOptions(make.per_channel)
        self.rule = make(options)
        if self.rule.learned and self.default is not None:
            width = channels if options.per_channel else 1
            self.step = nn.Parameter(torch.ones(self.bank.rows, width))

    @property
    def fits_device(self) -> bool:
        """True where it is on and int8 holds its codes, which 8 bits of DoReFa exceed."""
        return self.is_on and (self.selected or 0) <= self.rule.widest

    def limits(self, bits: int) -> tuple[int, int]:
        """Return (Qn, Qp): weights are narrow."""
        return weight_limit(bits), weight_limit(bits)

    def scale(self, bits: int, weight: Tensor | None = None) -> Tensor:
        """Return the positive scale at `bits`, (C,) or (1,).

        Args:
            bits: a candidate.
            weight: the weights, which some quantizers compute their scale from.
        """
        given = self.step if weight is None else weight
        return self.rule.scale(given, bits, self._step(bits))

    def device_scale(self, weight: Tensor) -> tuple[Tensor, int]:
        """Return the scale of the codes as the device holds them, and k.

        They are 2^k times as large as the quantizer's; the scale is (C,) or (1,), at the bits
        that are selected.

        Args:
            weight: the weights.
        """
        bits = self.selected
        if bits is None:
            raise ValueError(f"quantizer {self.name} is off")
        shift = container_shift(self.rule.scheme, bits)
        return self.scale(bits, weight) / float(1 << shift), shift

    def quantize_at(self, x: Tensor, bits: int) -> Tensor:
        """Fake-quantize `x` (C, ...) at one candidate."""
        return self.rule.quantize(x, bits, self._step(bits))

    def _step(self, bits: int) -> Tensor | None:
        if not self.learned:
            return None
        # A view is cheaper than a row where there is only one.
        return self.step.squeeze(0) if self.bank.rows == 1 else self.step[self.bank.row(bits)]

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the selected grid (same shape and dtype)."""
        if torch.onnx.is_in_onnx_export():
            source = dict(self.named_buffers(recurse=False)).get("baked_source")
            if source is None:
                return self._traced(x, scheme=self.rule.scheme)
            return self._traced(source, scheme=self.rule.scheme, plain=x)
        return self.quantize(x)

    @torch.no_grad()
    def bake(self, weight: Tensor) -> None:
        """Compute, for a trace, what the device shall not compute again from `weight`."""
        if self._has_all_steps and not self.rule.stored:
            return
        known = [bits for bits in self.bits if bits not in FLOAT_WIDTHS]
        self._bake([self.scale(bits, weight) for bits in known])
        if known and self.rule.scheme != "symmetric":
            source = self.rule.source(weight, self._step(known[0]))
            self.register_buffer("baked_source", source, persistent=False)
