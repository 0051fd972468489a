"""Random numbers that depend on (seed, epoch, row, column) alone.

So a batch is the same whoever draws it: a data worker, another rank, a resumed run. Nothing is
stored and any row is drawn at once, which a generator's stream does not allow. The mixing
function is SplitMix64's (Steele et al., OOPSLA 2014, doi 10.1145/2660193.2660195), a bijection
of 64-bit integers.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_COLUMNS = 1 << 10


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values + _GOLDEN).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def uniform_draws(
    seed: int, epoch: int, rows: NDArray[np.int64], columns: int, first: int = 0
) -> NDArray[np.float32]:
    """Return (len(rows), columns) float32 uniform in [0, 1), multiples of 2^-24.

    Args:
        seed: of the run.
        epoch: of training.
        rows: of the data set.
        columns: how many numbers a row.
        first: number of the first column, below 1024 with the last.
    """
    key = _mixed(_mixed(np.array([seed], np.uint64)) ^ np.array([epoch], np.uint64))
    numbers = np.arange(first, first + columns, dtype=np.uint64)
    cells = rows.astype(np.uint64)[:, None] * np.uint64(_COLUMNS) + numbers
    bits = _mixed(_mixed(cells) ^ key)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of an epoch's order."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
