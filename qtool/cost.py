"""MACs and BOPs: what a network costs, before any runtime is asked.

BOPs = sum over convolution and linear layers of MACs * weight bits * activation bits (MetaMix,
arXiv 2311.06798, Eq. 6). Bias, BatchNorm, pooling and additions count 0; floats count as 32
bits.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qtool.errors import UserError
from qtool.qspec import LayerBits

FLOAT_BITS = LayerBits(32, 32)
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([kmgt]?)", re.IGNORECASE)


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer: multiply-accumulates per image and its bits."""

    name: str
    macs: int
    bits: LayerBits

    @property
    def bops(self) -> int:
        """Bit operations per image."""
        return self.macs * self.bits.weight * self.bits.activation


def total_macs(layers: Iterable[LayerCost]) -> int:
    """Return multiply-accumulates per image."""
    return sum(layer.macs for layer in layers)


def total_bops(layers: Iterable[LayerCost]) -> int:
    """Return bit operations per image."""
    return sum(layer.bops for layer in layers)


def with_bits(
    macs: Sequence[tuple[str, int]], inner: LayerBits, first_last: int | None
) -> list[LayerCost]:
    """Give every layer `inner` bits; the first and last layer `first_last`/`first_last`."""
    ends = LayerBits(first_last, first_last) if first_last is not None else inner
    last = len(macs) - 1
    return [
        LayerCost(name, count, ends if index in (0, last) else inner)
        for index, (name, count) in enumerate(macs)
    ]


def conv_macs(output_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    """MACs per image of a convolution or linear layer.

    Args:
        output_shape: (N, C, spatial...) or (N, C); N is ignored.
        weight_shape: (C, C_in / groups, kernel...) or (C, C_in).
    """
    count = 1
    for size in (*output_shape[1:], *weight_shape[1:]):
        count *= size
    return count


def parse_count(text: str) -> float:
    """Parse a budget: ``5.3G``, ``300M``, ``1.2e9`` (K, M, G, T are decimal)."""
    match = _BUDGET.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise UserError(
            f"budget {text!r}: expected a positive number such as 5.3G, 300M or 1.2e9"
        )
    return float(match[1]) * _UNITS[match[2].upper()]


def format_count(count: float) -> str:
    """Return ``5.394 G`` style text with three decimals."""
    for unit in ("T", "G", "M", "K"):
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:.3f} {unit}"
    return f"{count:.0f}"
