"""Which candidate a tensor gets: one rule, for training and for the pass that resolves bits.

1. Nothing is asked: the first candidate.
2. 16 or 32 bits are asked: weights stay floating point, and an input keeps its widest grid.
3. What is asked is among the candidates: just that.
4. It is not, and only the selection's default asks for it, of the first or the last layer or
   of one that reads the image: that layer's first candidate, which it was trained with.
Anything else is refused.
"""

from collections.abc import Sequence

from qtool.core.errors import UserError
from qtool.core.grids import FLOAT_WIDTHS


def choose(
    candidates: Sequence[int], asked: int | None, is_weight: bool, may_differ: bool, name: str
) -> int:
    """Return the bits that a layer's weight or input gets; 16 or 32 for float weights.

    Args:
        candidates: that it has, the first one its default.
        asked: bits, None where the selection says nothing of the layer.
        is_weight: of a weight; else of an input.
        may_differ: it is of such a layer, which no name or pattern is about.
        name: of the layer, for the error.

    Raises:
        UserError: `asked` is not among the candidates.
    """
    if asked is None:
        return candidates[0]
    if asked in FLOAT_WIDTHS:
        return asked if is_weight else max(candidates)
    if asked in candidates:
        return asked
    if may_differ:
        return candidates[0]
    raise UserError(
        f"layer {name}: {'weight' if is_weight else 'activation'} bits {asked} were not "
        f"trained; trained: {', '.join(map(str, candidates))}"
    )
