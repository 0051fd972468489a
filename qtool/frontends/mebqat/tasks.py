"""Tasks: which pairs of bit-widths a batch is trained at (MEBQAT, arXiv 2207.10188).

Of M tasks the first is float, which the others are taught by; where there are 1-bit
candidates, the second is one bit of both; each other one draws weight and activation bits
independently, again while they do not go together (`qtool.core.pairs.allowed_pairs`): it is
any of the allowed pairs, all alike. They are drawn by (seed, epoch, batch), so that every
process of a job, and a run that is resumed, has the same ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from qtool.core.cost import FLOAT_BITS
from qtool.core.selection import LayerBits
from qtool.data.batch_source import BatchSource, BatchT
from qtool.data.draws import uniform_draws

BINARY = LayerBits(1, 1)
# Tasks are drawn apart from images: batches of few rows would share their numbers.
_SEED = 1 << 50


@dataclass(frozen=True)
class Tasked(Generic[BatchT]):
    """A batch and the pairs that it is trained at."""

    batch: BatchT
    pairs: tuple[LayerBits, ...]


@dataclass(frozen=True)
class TaskBatches(Generic[BatchT]):
    """Batches of `source`, each with tasks of its own: a `BatchSource`.

    Args:
        source: of the batches.
        pairs: that are drawn from.
        tasks: M.
        forced: the tasks that every batch has, the first ones.
    """

    source: BatchSource[BatchT]
    pairs: Sequence[LayerBits]
    tasks: int
    forced: tuple[LayerBits, ...]

    @property
    def seed(self) -> int:
        """Of `source`."""
        return self.source.seed

    def __len__(self) -> int:
        return len(self.source)

    def epoch(self, index: int, start: int = 0) -> Iterator[Tasked[BatchT]]:
        """Yield the batches of epoch `index`, without the first `start`."""
        for step, batch in enumerate(self.source.epoch(index, start), start):
            yield Tasked(batch, self.drawn(index, step))

    def drawn(self, epoch: int, step: int) -> tuple[LayerBits, ...]:
        """Return the tasks of a batch."""
        count = self.tasks - len(self.forced)
        draws = uniform_draws(self.seed + _SEED, epoch, np.array([step]), max(count, 0))[0]
        chosen = (self.pairs[int(draw * len(self.pairs))] for draw in draws)
        return (*self.forced[: self.tasks], *chosen)


def forced_tasks(pairs: Sequence[LayerBits], narrowest: bool = False) -> tuple[LayerBits, ...]:
    """Return the tasks that every batch has: float, and one bit where that is a candidate.

    Args:
        pairs: that are trained.
        narrowest: where one bit is none, the pair of the fewest bits takes its place; ours.
    """
    if BINARY in pairs:
        return FLOAT_BITS, BINARY
    if narrowest:
        return FLOAT_BITS, min(
            pairs, key=lambda bits: (bits.weight * bits.activation, bits.weight)
        )
    return (FLOAT_BITS,)
