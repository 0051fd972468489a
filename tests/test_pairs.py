"""Pairs of bit-widths: which there are, what they are called, what users may ask for."""

import pytest

from qtool.core.errors import UserError
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.pairs import allowed_pairs, deployable, pair_name, parse_pairs
from qtool.core.selection import LayerBits

WIDTHS = (*range(1, 9), *FLOAT_WIDTHS)


def test_candidates_make_the_pairs_of_table_6() -> None:
    pairs = allowed_pairs(WIDTHS, WIDTHS)
    by_weight = {w: [p.activation for p in pairs if p.weight == w] for w in WIDTHS}
    wide = [*range(2, 9), 16, 32]
    assert by_weight == {1: [1, 32], **dict.fromkeys([*range(2, 9), 16], wide), 32: [32]}
    # What the paper's savings are computed from (`qtool.checking.savings`).
    assert len(pairs) == 75


def test_integers_run_up_to_eight_bits() -> None:
    found = [pair_name(p) for p in allowed_pairs((1, 8, 16, 32), (1, 8, 16, 32))]
    assert found == ["w1a1", "w1a32", "w8a8", "w8a16", "w8a32", "w16a8", "w16a16", "w16a32",
                     "fp"]  # fmt: skip
    assert [deployable(LayerBits(*bits)) for bits in ((1, 1), (8, 8), (8, 16), (32, 32))] == [
        True, True, False, False,
    ]  # fmt: skip


KNOWN = allowed_pairs((1, 2, 8, 32), (1, 2, 8, 32))


def test_what_is_asked_for() -> None:
    assert parse_pairs("all", KNOWN) == KNOWN
    assert parse_pairs(" w8a2, FP,W1A1,w8a2,w2a32", KNOWN) == [
        LayerBits(8, 2), LayerBits(32, 32), LayerBits(1, 1), LayerBits(2, 32),
    ]  # fmt: skip
    # No device has it, but the run does.
    assert parse_pairs("w8a32", KNOWN) == [LayerBits(8, 32)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("w4a8", "'w4a8': w4a8 is not among the candidates: there are weights of 1, 2, 8, FP"),
        ("fp,w2a3", "w2a3 is not among the candidates: weights of 2 bits go with inputs of 2"),
        ("w1a8", "weights of 1 bits go with inputs of 1, FP"),
        ("w8a2,", "'' is not like w4a4 or fp"),
        ("all,w8a2", "'all' is not like w4a4 or fp; expected a list of such, or all"),
        ("w9a9", "weight bits 9 not supported"),
    ],
)
def test_others_are_refused_with_those_there_are(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_pairs(text, KNOWN)
    assert said in str(caught.value)
