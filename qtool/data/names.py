"""Millions of short names in two arrays.

As Python strings, or paths, they would take ten times the memory, and every data worker would
copy them, because reading a string writes its reference count.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Names:
    """Byte strings: number i is ``text[starts[i]:starts[i + 1]]``."""

    text: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.text[self.starts[index] : self.starts[index + 1]].tobytes()

    def head(self, count: int | None) -> "Names":
        """Return the first `count` names."""
        return self if count is None else Names(self.text, self.starts[: count + 1])


def pack(groups: Iterable[Sequence[bytes]]) -> Names:
    """Return the names of all `groups`, which need not exist at the same time."""
    texts, lengths = [], []
    for names in groups:
        texts.append(np.frombuffer(b"".join(names), np.uint8))
        lengths.append(np.fromiter(map(len, names), np.int64, len(names)))
    ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))
    return Names(np.concatenate([np.zeros(0, np.uint8), *texts]), ends)
