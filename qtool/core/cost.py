"""MACs and BOPs: what a network costs, before any runtime is asked.

BOPs = sum over convolution and linear layers of MACs * weight bits * activation bits (MetaMix,
arXiv 2311.06798, Eq. 6). Bias, BatchNorm, pooling and additions count 0; floats count as 32
bits.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qtool.core.errors import UserError
from qtool.core.selection import LayerBits

FLOAT_BITS = LayerBits(32, 32)
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SECONDS = {"S": 1.0, "MS": 1e-3, "US": 1e-6}
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_BUDGET = re.compile(_NUMBER + "([kmgt]?)", re.IGNORECASE)
_BYTES = re.compile(_NUMBER + "([kmgt]?)b?", re.IGNORECASE)
_TIME = re.compile(_NUMBER + "(s|ms|us)", re.IGNORECASE)


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
    return _parse(text, "budget", _BUDGET, _UNITS, "5.3G, 300M or 1.2e9")


def parse_bytes(text: str) -> float:
    """Parse a size in bytes: ``2MB``, ``300K``, ``1.2e6`` (decimal units)."""
    return _parse(text, "size", _BYTES, _UNITS, "2MB, 300K or 1.2e6")


def parse_seconds(text: str) -> float:
    """Parse a latency: ``3ms``, ``250us``, ``0.5s``; in seconds."""
    return _parse(text, "latency", _TIME, _SECONDS, "3ms, 250us or 0.5s")


def _parse(
    text: str, what: str, form: re.Pattern[str], units: Mapping[str, float], example: str
) -> float:
    match = form.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise UserError(f"{what} {text!r}: expected a positive number such as {example}")
    return float(match[1]) * units[match[2].upper()]


def format_count(count: float) -> str:
    """Return ``5.394 G`` style text with three decimals."""
    for unit in ("T", "G", "M", "K"):
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:.3f} {unit}"
    return f"{count:.0f}"
