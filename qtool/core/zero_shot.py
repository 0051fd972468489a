"""Zero-shot bit-widths: never trained, but between two that were.

CoQuant (arXiv 2103.01435, section 5 of its supplement) deploys a network at bit-widths that
it was not trained at, with BatchNorm calibrated there. The texts that we have do not say what
else a width gets; our reading, with b between the nearest trained widths l < b < h and
t = (b - l) / (h - l):

- the range of a grid, from its smallest value to its largest, is (1 - t) range_l + t range_h.
  Steps, alpha and the share of the range that lies below 0 follow. Linear, since the range
  with the least squared error grows about linearly with the bits (Banner et al., arXiv
  1810.05723, for Gaussian and Laplacian values); where training left ranges equal, so is this.
- what no width has for itself stays: shared steps, grids and codes that a formula gives.
- BatchNorm's weight and bias are interpolated alike where widths have their own; its mean and
  variance are taken at b, from images.

Outside of what was trained nothing says how ranges go on, and 1-bit grids are of another kind:
neither is extrapolated, and 1 bit is no neighbour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from qtool.core.errors import UserError
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.pairs import pair_key, width_name
from qtool.core.selection import LayerBits


class _Number(Protocol):
    """A float or a tensor."""

    def __add__(self, other: Self, /) -> Self: ...

    def __rmul__(self, other: float, /) -> Self: ...


Value = TypeVar("Value", bound=_Number)


@dataclass(frozen=True)
class Between:
    """A bit-width between trained ones.

    Args:
        below: the nearest trained width below; the width itself where it was trained.
        above: likewise, above.
        width: itself.
    """

    below: int
    above: int
    width: int

    @property
    def ends(self) -> tuple[int, int]:
        """Return the trained widths."""
        return self.below, self.above

    @property
    def is_trained(self) -> bool:
        """True where nothing has to be interpolated."""
        return self.below == self.above

    def __str__(self) -> str:
        return f"between those of {self.below} and {self.above} bits"

    def mix(self, below: Value, above: Value) -> Value:
        """Return (1 - t) `below` + t `above`, what two trained widths have."""
        share = (self.width - self.below) / max(self.above - self.below, 1)
        return (1 - share) * below + share * above


@dataclass(frozen=True)
class PairBetween:
    """A pair of bit-widths, each between trained ones."""

    weight: Between
    activation: Between

    @property
    def is_trained(self) -> bool:
        """True where both were trained."""
        return self.weight.is_trained and self.activation.is_trained

    def ends(self) -> tuple[LayerBits, LayerBits] | None:
        """Return the trained pairs that it is on a line between; None: there is no such line.

        They are the pair itself, twice, where both widths were trained.
        """
        if not self.is_trained and self.weight != self.activation:
            return None
        weight, activation = self.weight, self.activation
        below = LayerBits(weight.below, activation.below)
        return below, LayerBits(weight.above, activation.above)


@dataclass(frozen=True)
class ZeroShot:
    """What a pair that was never trained was given (`qtool.runs.zero_shot` keeps it).

    Args:
        bits: of weights and inputs.
        weights: the nearest trained widths, or the width itself, twice.
        inputs: likewise.
        images: that BatchNorm's statistics are from.
        dataset: whose images these are.
        digest: hash of BatchNorm's tensors.
    """

    bits: tuple[int, int]
    weights: tuple[int, int]
    inputs: tuple[int, int]
    images: int
    dataset: str
    digest: str

    def concerns(self, bits: LayerBits) -> bool:
        """True where `bits`, of a layer or of all, has a width of this that is untrained."""
        weight, activation = self.bits
        return (bits.weight == weight and self.weights[0] != self.weights[1]) or (
            bits.activation == activation and self.inputs[0] != self.inputs[1]
        )

    def __str__(self) -> str:
        spans = {"weights": self.weights, "inputs": self.inputs}
        grids = [
            f"{what} between {low} and {high} bits"
            for what, (low, high) in spans.items()
            if low != high
        ]
        return (
            f"{pair_key(LayerBits(*self.bits))} was never trained: {', '.join(grids)}, "
            f"BatchNorm of {self.images:,} images of {self.dataset}"
        )


def place_of(
    weights: Sequence[int], activations: Sequence[int], bits: LayerBits
) -> PairBetween:
    """Return between which trained widths `bits` lies.

    Args:
        weights: candidates that were trained; those of 16 and 32 bits have no grid.
        activations: likewise, of layers' inputs.
        bits: of all layers; 16 and 32, which need no training, count as trained.

    Raises:
        UserError: a width that was not trained is not between two that were.
    """
    return PairBetween(
        _between(weights, bits.weight, "weights", bits),
        _between(activations, bits.activation, "inputs", bits),
    )


def _between(candidates: Sequence[int], width: int, what: str, bits: LayerBits) -> Between:
    if width in candidates or width in FLOAT_WIDTHS:
        return Between(width, width, width)
    grids = [known for known in candidates if known not in FLOAT_WIDTHS and known > 1]
    below = [known for known in grids if known < width]
    above = [known for known in grids if known > width]
    if not below or not above:
        trained = ", ".join(width_name(known) for known in sorted(candidates)) or "none"
        raise UserError(
            f"{pair_key(bits)}: {width}-bit {what} were not trained, and are not between two "
            f"widths above 1 that were ({trained}): there is nothing to interpolate"
        )
    return Between(max(below), min(above), width)
