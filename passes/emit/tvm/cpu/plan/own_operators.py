"""Operators that the plan adds to those of the dialect."""

from dataclasses import dataclass

from qtool.core.dialect import Op


@dataclass(frozen=True)
class Pixels(Op):
    """The uint8 input, brought from planes into pixels."""


@dataclass(frozen=True)
class Select(Op):
    """Channels of a tensor by number: a shuffle of groups, or a slice with a step.

    Args:
        index: for every channel of the result, that of the input.
    """

    index: tuple[int, ...]


@dataclass(frozen=True)
class Copy(Op):
    """The same codes again, to have another halo."""
