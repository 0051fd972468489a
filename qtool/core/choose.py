"""Which candidate a tensor gets, and which row of a bank: one rule, for training and the pass.

Bits, by `choose`:

1. Nothing is asked: the first candidate.
2. Only the selection's default asks, and the layer keeps its bits whatever that says, as the
   first and the last layer do in MEBQAT: its first candidate.
3. 16 or 32 bits are asked: weights stay floating point, and an input keeps its widest grid
   (but see `qtool.nn.control.select` for networks whose tensors may be floats).
4. What is asked is among the candidates: just that.
5. It is not, and only the selection's default asks for it, of the first or the last layer or
   of one that reads the image: that layer's first candidate, which it was trained with.
Anything else is refused.

Rows of norms and corrections, by `choose_rows`. Their keys are pairs (``w4a4``: a preset, or
what statistics were taken at) or one bit-width (``w4``, ``a4``: one row a precision):

a. The bits that all layers really get are those of one key, asked of every layer (so that the
   first and the last layer may have their own): every layer takes that key's row. It was made
   with the whole network at these bits.
b. A mixed selection: each layer takes the row of its own bits; a pair comes before one width.
c. No such row: the first one, the default.
What belongs to no layer takes the row of case a, else the default. Some rows serve less
(`Serves`): statistics that were taken with the whole network at one pair case a only,
BatchNorms of which each was trained at a precision case b, and case c where a layer has one
candidate anyway. Anything else is refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from qtool.core.errors import UserError
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.selection import LayerBits, Selection


def choose(
    candidates: Sequence[int],
    asked: int | None,
    is_weight: bool,
    may_differ: bool,
    name: str,
    keeps: bool = False,
) -> int:
    """Return the bits that a layer's weight or input gets; 16 or 32 for float weights.

    Args:
        candidates: that it has, the first one its default.
        asked: bits, None where the selection says nothing of the layer.
        is_weight: of a weight; else of an input.
        may_differ: it is of such a layer, which no name or pattern is about.
        name: of the layer, for the error.
        keeps: where it may differ, it does (case 2).

    Raises:
        UserError: `asked` is not among the candidates.
    """
    if asked is None or (keeps and may_differ):
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


@dataclass(frozen=True)
class Candidates:
    """Bits that a layer's weight and its input may get; the first ones are their defaults.

    `keeps`: it has these whatever a selection's default asks (case 2).
    """

    weight: tuple[int, ...]
    activation: tuple[int, ...]
    keeps: bool = False

    @property
    def is_fixed(self) -> bool:
        """True where there is nothing to choose."""
        return len(self.weight) == len(self.activation) == 1

    def given(self, asked: LayerBits | None, named: bool = False) -> LayerBits:
        """Return the bits that the layer gets; where it lacks those `asked`, its defaults.

        Args:
            asked: None where the selection says nothing of the layer.
            named: a name or pattern asks, not the selection's default.
        """
        default = LayerBits(self.weight[0], self.activation[0])
        if default.is_float:  # so the products are too
            return LayerBits(default.weight, default.weight)
        if asked is None or (self.keeps and not named):
            return default
        if asked.is_float:
            return asked
        weight = choose(self.weight, asked.weight, True, True, "")
        if asked.activation in FLOAT_WIDTHS:  # of tensors that may be floats
            return LayerBits(weight, asked.activation)
        return LayerBits(weight, choose(self.activation, asked.activation, False, True, ""))


def given_bits(layers: Mapping[str, Candidates], selection: Selection) -> dict[str, LayerBits]:
    """Return the bits that `selection`, of names and a default, gives every layer."""
    return {
        name: candidates.given(selection.of(name), name in selection.layers)
        for name, candidates in layers.items()
    }


class Serves(IntEnum):
    """What the rows of a bank serve, as the adaptive graph numbers it.

    Attributes:
        ANY: any selection: the default row will do for bits without one.
        WHOLE: the whole network at the bits of a row's key.
        OWN: every layer at the bits of its row, whatever the others have.
    """

    ANY = 0
    WHOLE = 1
    OWN = 2


def choose_rows(
    keys: Sequence[str],
    layers: Mapping[str, Candidates],
    given: Mapping[str, LayerBits],
    serves: Serves = Serves.ANY,
) -> dict[str, int]:
    """Return which row of a bank each layer takes (see the module).

    Args:
        keys: of the rows, the default one first: ``w4a4``, ``w4``, ``a4``.
        layers: of the whole network.
        given: the bits that they really get.
        serves: what the rows do.

    Returns:
        Rows by layer; that of ``""`` is for what belongs to no layer.

    Raises:
        UserError: keys of another form; bits that the rows do not serve.
    """
    asked = [parse_key(key) for key in keys]
    for row, key in enumerate(asked):
        wanted = {name: key.completed(bits) for name, bits in given.items()}
        if all(layers[name].given(bits) == given[name] for name, bits in wanted.items()):
            return dict.fromkeys(("", *given), row)
    if serves is Serves.WHOLE:
        raise UserError(
            "BatchNorm statistics were never taken at these bits; they were at "
            f"{_listed(keys)}: ask for one of these, or take them now with --calibration DIR"
        )
    # Pairs first: they say more of a layer than one width.
    order = sorted(range(len(asked)), key=lambda row: not asked[row].is_pair)
    own = {
        name: next((row for row in order if asked[row].completed(bits) == bits), None)
        for name, bits in given.items()
    }
    if serves is Serves.OWN:
        _require_own(keys, own, layers, given)
    return {"": 0, **{name: row or 0 for name, row in own.items()}}


def _require_own(
    keys: Sequence[str],
    own: Mapping[str, int | None],
    layers: Mapping[str, Candidates],
    given: Mapping[str, LayerBits],
) -> None:
    """Refuse layers without a row of their own that have several candidates."""
    for name, row in own.items():
        if row is None and not layers[name].is_fixed:
            bits = given[name]
            raise UserError(
                f"layer {name}: its BatchNorm was never trained at weights of {bits.weight} "
                f"and inputs of {bits.activation} bits; each layer may have {_listed(keys)}"
            )


def _listed(keys: Sequence[str]) -> str:
    """Name the first keys, those that an integer runtime has before those with floats."""
    keys = sorted(keys, key=lambda key: parse_key(key).is_float)
    shown = ", ".join(keys[:_SHOWN])
    return shown if len(keys) <= _SHOWN else f"{shown} and {len(keys) - _SHOWN} more pairs"


_SHOWN = 12


@dataclass(frozen=True)
class Key:
    """What a row of a bank belongs to: a pair of bit-widths, or one of them."""

    weight: int | None
    activation: int | None

    @property
    def is_pair(self) -> bool:
        """True for a pair."""
        return self.weight is not None and self.activation is not None

    @property
    def is_float(self) -> bool:
        """True where a width that it says is floating point."""
        return self.weight in FLOAT_WIDTHS or self.activation in FLOAT_WIDTHS

    def completed(self, bits: LayerBits) -> LayerBits:
        """Return the bits of this key; what it does not say is as in `bits`."""
        return LayerBits(
            bits.weight if self.weight is None else self.weight,
            bits.activation if self.activation is None else self.activation,
        )


_KEY = re.compile(r"(?=.)(?:w(\d+))?(?:a(\d+))?")


def parse_key(text: str) -> Key:
    """Return the key ``w4a4``, ``w4`` or ``a4``.

    Raises:
        UserError: `text` has another form.
    """
    match = _KEY.fullmatch(text)
    if match is None:
        raise UserError(f"row {text!r} of a bank: its key is not like w4a4, w4 or a4")
    weight, activation = (None if part is None else int(part) for part in match.groups())
    return Key(weight, activation)
