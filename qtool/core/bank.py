"""Banks: parameters that have a row for every candidate.

Steps, clipping values and zero points have a row a bit-width, BatchNorm's parameters and a
correction one a pair of bit-widths; or one row that all candidates share. Modules keep such a
parameter as a tensor (rows, ...), the adaptive graph as an input of ``qtool::FakeQuant`` or
``qtool::Norm``; a `Bank` says which row belongs to which key.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True)
class Bank(Generic[KeyT]):
    """Which row of a parameter belongs to which candidate.

    Args:
        keys: the candidates, such as bit-widths or pairs of them; the first is the default.
        shared: they all read row 0.
    """

    keys: tuple[KeyT, ...]
    shared: bool = False

    def __post_init__(self) -> None:
        if not self.keys or len(set(self.keys)) < len(self.keys):
            raise ValueError(f"bank: keys {self.keys} must be there, and differ")

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return 1 if self.shared else len(self.keys)

    def row(self, key: KeyT) -> int:
        """Return the row of `key`.

        Raises:
            ValueError: it is none of the candidates.
        """
        index = self.keys.index(key)
        return 0 if self.shared else index

    def rows_of(self, keys: Iterable[KeyT]) -> list[int]:
        """Return the rows of `keys`, in their order."""
        return [self.row(key) for key in keys]

    def missing(self, keys: Iterable[KeyT]) -> list[KeyT]:
        """Return those of `keys` that are none of the candidates."""
        return [key for key in keys if key not in self.keys]
