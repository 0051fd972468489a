"""Pairs of bit-widths: one for all weights, one for all inputs of a network.

A pair is called ``w4a8``; floating point, 32 bits of both, is ``fp``. Which pairs candidates
make is MEBQAT's rule (arXiv 2207.10188; Table 6 of its appendix lists them all):

- float weights (32 bits) go with float inputs only; those of 16 bits go with any
- weights of 1 bit go with inputs of 1 bit or float ones, and inputs of 1 bit with no others
"""

from collections.abc import Iterable, Sequence

from qtool.core.cost import FLOAT_BITS
from qtool.core.errors import UserError
from qtool.core.grids import ACTIVATION_BITS, FLOAT_WIDTHS, WEIGHT_BITS
from qtool.core.selection import LayerBits, parse_uniform

ALL, FLOAT = "all", "fp"
_FP = FLOAT_BITS.weight


def allowed_pairs(weights: Sequence[int], activations: Sequence[int]) -> list[LayerBits]:
    """Return the pairs that the candidates make, weights slowest, each in the order given.

    Args:
        weights: bit-widths of weights, 1 to 8, 16 or 32.
        activations: bit-widths of layers' inputs, likewise.
    """
    every = (LayerBits(weight, activation) for weight in weights for activation in activations)
    return [bits for bits in every if _goes(bits)]


def _goes(bits: LayerBits) -> bool:
    """True where the paper has the pair."""
    if bits.weight == _FP:
        return bits.activation == _FP
    if bits.weight == 1:
        return bits.activation in (1, _FP)
    return bits.activation != 1


def require_pairs(weights: Sequence[int], activations: Sequence[int]) -> None:
    """Refuse candidates that some pair cannot be made of, or whose first ones make none.

    Raises:
        UserError: says which setting, and what to give.
    """
    for name, bits in (("weight", weights), ("activation", activations)):
        if all(width in FLOAT_WIDTHS for width in bits):
            raise UserError(
                f"recipe setting {name}_bits: got {','.join(map(str, bits)) or 'none'}, "
                "expected a candidate of 1 to 8 bits at least, such as 8,4,2,32"
            )
    pairs = allowed_pairs(weights, activations)
    for width in activations:
        if all(pair.activation != width for pair in pairs):
            raise UserError(
                f"recipe setting activation_bits: {width}-bit inputs go with none of the "
                f"weights' {','.join(map(str, weights))} bits: "
                + ("add 1 to weight_bits" if width == 1 else "add others to weight_bits")
            )
    if 1 in weights and all(pair.weight != 1 for pair in pairs):
        raise UserError(
            "recipe setting weight_bits: 1-bit weights go with 1-bit or float inputs only: "
            "add 1 or 32 to activation_bits"
        )
    first = default_pair(weights, activations)
    if first not in pairs:
        raise UserError(
            f"recipe settings weight_bits and activation_bits: {pair_key(first)}, the first "
            "integers of both, is what a run is where nothing is asked, and these do not go "
            "together: put others first"
        )


def default_pair(weights: Sequence[int], activations: Sequence[int]) -> LayerBits:
    """Return the pair of the first candidates that are integers: what no selection gives."""
    first = [next(b for b in some if b not in FLOAT_WIDTHS) for some in (weights, activations)]
    return LayerBits(*first)


def pair_key(bits: LayerBits) -> str:
    """Return ``w4a8``, the key of a pair's row in a bank."""
    return f"w{bits.weight}a{bits.activation}"


def deployable(bits: LayerBits) -> bool:
    """True where an integer runtime computes the pair: at most 8 bits of both."""
    return bits.weight in WEIGHT_BITS and bits.activation in ACTIVATION_BITS


def pair_name(bits: LayerBits) -> str:
    """Return ``w4a8``, or ``fp`` for 32 bits of both."""
    return FLOAT if bits == FLOAT_BITS else pair_key(bits)


def width_name(width: int) -> str:
    """Return ``4``, or ``FP`` for 32 bits: how tables and errors call a bit-width."""
    return "FP" if width == _FP else str(width)


def parse_pairs(
    text: str, known: Sequence[LayerBits], what: str = "--bits"
) -> list[LayerBits]:
    """Return the pairs that `text` names: ``all``, or such as ``w4a4,w2a8,fp``.

    Args:
        text: what the user gave.
        known: the pairs that there are; ``all`` is these, in their order.
        what: where, for the error.

    Returns:
        Each pair once, in the order of `text`.

    Raises:
        UserError: text of another form, or a pair that is not known, with those that are.
    """
    if text.strip().lower() == ALL:
        return list(known)
    pairs = [_parse(part.strip(), text, what) for part in text.split(",")]
    for bits in pairs:
        if bits not in known:
            raise UserError(f"{what} {text!r}: {_why_not(bits, known)}")
    return list(dict.fromkeys(pairs))


def parse_pair(text: str) -> LayerBits | None:
    """Return the pair that `text` names, ``w4a8``, ``w4a32`` or ``fp``; None: another form."""
    return FLOAT_BITS if text.lower() == FLOAT else parse_uniform(text, float_inputs=True)


def _parse(part: str, text: str, what: str) -> LayerBits:
    bits = parse_pair(part)
    if bits is None:
        raise UserError(
            f"{what} {text!r}: {part!r} is not like w4a4 or {FLOAT}; expected a list of such, "
            f"or {ALL}"
        )
    return bits


def _why_not(bits: LayerBits, known: Iterable[LayerBits]) -> str:
    """Say which candidates there are instead of `bits`."""
    inputs = [pair.activation for pair in known if pair.weight == bits.weight]
    weights = [pair.weight for pair in known]
    if inputs:
        there = f"weights of {width_name(bits.weight)} bits go with inputs of {_list(inputs)}"
    else:
        there = f"there are weights of {_list(weights)} bits"
    return f"{pair_name(bits)} is not among the candidates: {there}"


def _list(widths: Iterable[int]) -> str:
    """Return ``2, 4, FP``: each width once, the narrowest first."""
    return ", ".join(width_name(width) for width in sorted(set(widths)))
