"""Errors that a user can act on, and the helpers that word them."""

import difflib
from collections.abc import Iterable, Sequence

# Names that a message has.
_SHOWN = 6


class UserError(Exception):
    """A mistake in the input. The message is one line: what, where, got/expected, what to do.

    The CLI prints it without a traceback and exits with 2.
    """


class UnsupportedError(UserError):
    """A graph that the integer dialect cannot express; names layer, operator and reason."""


class MissedBar(Exception):
    """A check ran and a required bar was not reached. The CLI exits with 1."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a misspelt `kind`, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}: {hint}")


def listed(names: Sequence[str]) -> str:
    """Return ``a, b, c``, of many names the first."""
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
