"""A field of a settings class: its default, what it means, and the values it takes.

The words stand once, as metadata of the dataclass field: `qtool.settings.override` holds
values to them, ``qtool list settings RECIPE`` prints them. A subclass that wants another
default writes it plainly (``asymmetric: bool = True``) and keeps the rest; one that means
something else calls `setting` again.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qtool.core.errors import UserError, unknown_name

T = TypeVar("T")
MANY = 10**9
_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What a field says of itself.

    Args:
        meaning: one line.
        lowest: of a number, or of every number in a list; None: any.
        highest: likewise; None with a `lowest`: `MANY`.
        also: numbers outside that range.
        choices: the words that it, or every word in a list, is one of; empty: any.
        check: called with name and value, refuses wrong ones with a `UserError`.
        looks: of what `check` lets through, for people.
    """

    meaning: str
    lowest: float | None = None
    highest: float | None = None
    also: tuple[int, ...] = ()
    choices: Collection[str] = ()
    check: Callable[[str, Any], object] | None = None
    looks: str = ""

    def require(self, name: str, value: Any) -> None:
        """Refuse a value that setting `name` does not take."""
        for item in items(value):
            if self.lowest is not None and item not in self.also:
                highest = MANY if self.highest is None else self.highest
                if not self.lowest <= item <= highest:
                    raise UserError(
                        f"recipe setting {name}: got {item}, expected {self._spanned(highest)}"
                    )
            if self.choices and item not in self.choices:
                raise unknown_name(f"recipe setting {name}", item, self.choices)
        if self.check is not None:
            self.check(name, value)

    @property
    def range(self) -> str:
        """The values it takes, in words; empty: any of its type."""
        if self.looks or self.choices:
            return self.looks or ", ".join(word for word in self.choices if word)
        if self.lowest is None or math.isinf(self.lowest):
            return ""
        if self.highest is None:
            return f">= {self.lowest:g}"
        return self._spanned(self.highest)

    def _spanned(self, highest: float) -> str:
        """Return ``1 to 8, 16, 32``."""
        return ", ".join([f"{self.lowest:g} to {highest:g}", *map(str, self.also)])


def differ(name: str, value: Any) -> None:
    """Refuse a list that has something twice."""
    twice = [item for item in items(value) if items(value).count(item) > 1]
    if twice:
        raise UserError(f"recipe setting {name}: {twice[0]} is given twice")


def setting(
    default: T,
    meaning: str,
    lowest: float | None = None,
    highest: float | None = None,
    *,
    also: tuple[int, ...] = (),
    choices: Collection[str] = (),
    check: Callable[[str, Any], object] | None = None,
    looks: str = "",
) -> T:
    """Return a dataclass field with a `default`; the rest is as in `Setting`."""
    says = Setting(meaning, lowest, highest, also, choices, check, looks)
    return field(default=default, metadata={_KEY: says})


def told(meaning: str) -> dict[str, Setting]:
    """Return the metadata of a field that has no default: ``field(metadata=told("..."))``."""
    return {_KEY: Setting(meaning)}


def setting_of(kind: type, name: str) -> Setting:
    """Return what field `name` of settings class `kind` says of itself, or inherits."""
    for owner in kind.__mro__:
        known = vars(owner).get("__dataclass_fields__", {}).get(name)
        if known is not None and _KEY in known.metadata:
            found: Setting = known.metadata[_KEY]
            return found
    raise TypeError(f"{kind.__name__}.{name} does not say what it means: see setting()")


def written(value: Any) -> str:
    """Return a value as ``--set`` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, items(value)))


def items(value: Any) -> tuple[Any, ...]:
    """Return a list's items, or the only value."""
    return value if isinstance(value, tuple) else (value,)
