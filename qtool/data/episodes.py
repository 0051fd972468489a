"""Episodes: a few labelled images of some classes, and others of these classes to ask about.

An episode of `ways` classes has `shots` images a class to learn from (its support set) and
`queries` others (Vinyals et al., arXiv 1606.04080; N-way k-shot). Which classes and images it
has follows from (seed, epoch, number) alone, so it is the same whoever draws it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, arange, cat

from qtool.core.errors import UserError
from qtool.data.batches import to_batch
from qtool.data.images import Source


class Task(NamedTuple):
    """One episode, its tensors as of `Episode` without the axis of episodes.

    Args:
        support: (ways * shots, C, H, W).
        support_labels: (ways * shots,).
        query: (ways * queries, C, H, W).
        query_labels: (ways * queries,).
        place: which of its batch's episodes it is.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    place: int

    @property
    def images(self) -> Tensor:
        """Support and query images, one batch."""
        return cat([self.support, self.query])


@dataclass(frozen=True)
class Episode:
    """A batch of `tasks` episodes, the first axis of every tensor.

    Args:
        support: (tasks, ways * shots, C, H, W) float32 in [0, 1], classes one after another.
        support_labels: (tasks, ways * shots) int64, 0 to ways - 1 in each episode.
        query: (tasks, ways * queries, C, H, W), likewise.
        query_labels: (tasks, ways * queries).
        places: (tasks,) int64, see `Task`.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    places: Tensor

    def tasks(self) -> Iterator[Task]:
        """Yield the episodes."""
        for index, place in enumerate(self.places.tolist()):
            yield Task(
                self.support[index], self.support_labels[index],
                self.query[index], self.query_labels[index], place,
            )  # fmt: skip


@dataclass(frozen=True)
class EpisodeSize:
    """Classes of an episode, and images of each.

    Args:
        ways: classes.
        shots: support images a class.
        queries: query images a class.
    """

    ways: int
    shots: int
    queries: int


class EpisodeDraws:
    """Which images episodes have.

    Args:
        labels: class of every image, (N,).
        size: of an episode.
        seed: of all draws.
        where: the images are from, for the error.

    Raises:
        UserError: fewer classes, or fewer images of a class, than an episode takes.
    """

    def __init__(
        self, labels: NDArray[np.int64], size: EpisodeSize, seed: int, where: str
    ) -> None:
        self.size, self.seed = size, seed
        order = np.argsort(labels, kind="stable")
        counts = np.unique(labels, return_counts=True)[1]
        self._classes = np.split(order, np.cumsum(counts)[:-1])
        wanted = size.shots + size.queries
        if len(counts) < size.ways:
            raise UserError(
                f"{where}: {len(counts)} classes, an episode has {size.ways}: set fewer ways"
            )
        if counts.min() < wanted:
            raise UserError(
                f"{where}: a class of {counts.min()} images, an episode takes {size.shots} "
                f"shots and {size.queries} queries: set fewer"
            )

    def rows(self, *number: int) -> NDArray[np.int64]:
        """Return the images (ways, shots + queries) of episode `number`."""
        generator = np.random.default_rng((self.seed, *number))
        wanted = self.size.shots + self.size.queries
        classes = generator.choice(len(self._classes), self.size.ways, replace=False)
        return np.stack(
            [generator.choice(self._classes[c], wanted, replace=False) for c in classes]
        )


@dataclass(frozen=True)
class Episodes:
    """Training episodes: a `qtool.data.batch_source.BatchSource` of `Episode`.

    Args:
        source: the images; decoded once if it is `qtool.data.kept.Kept`.
        draws: of these images.
        steps: batches an epoch.
        tasks: episodes a batch.
    """

    source: Source
    draws: EpisodeDraws
    steps: int
    tasks: int = 1

    @property
    def seed(self) -> int:
        """Of all draws."""
        return self.draws.seed

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.steps

    def epoch(self, index: int, start: int = 0) -> Iterator[Episode]:
        """Yield the batches of epoch `index` from batch `start` on.

        Raises:
            UserError: damaged data.
        """
        for step in range(start, self.steps):
            yield self._batch(index, step)

    def _batch(self, index: int, step: int) -> Episode:
        size, tasks = self.draws.size, range(self.tasks)
        rows = np.stack([self.draws.rows(index, step, task) for task in tasks])
        support, query = rows[..., : size.shots], rows[..., size.shots :]
        return Episode(
            self._images(support), _labels(size.ways, size.shots, len(rows)),
            self._images(query), _labels(size.ways, size.queries, len(rows)),
            arange(len(rows)),
        )  # fmt: skip

    def _images(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the images of `rows` (tasks, ways, n), as `Episode` has them."""
        x, _ = to_batch(self.source, rows.reshape(-1))
        return x.view(len(rows), -1, *x.shape[1:])


def _labels(ways: int, images: int, tasks: int) -> Tensor:
    return arange(ways).repeat_interleave(images).expand(tasks, -1)
