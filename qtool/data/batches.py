"""Training batches: shuffled, augmented, the same wherever they are drawn, also in workers."""

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from qtool.core.errors import UserError
from qtool.data.augment import RESIZED_CROP, Augment, parse_augment
from qtool.data.draws import epoch_generator, uniform_draws
from qtool.data.images import INPUT_SCALE, Ordered, Rows, Source

Batch = tuple[Tensor, Tensor]
_Raw = tuple[Tensor, Tensor]  # pixels still uint8: a quarter of what workers hand over
# Columns of an item's draws: the source's come first, augmentation's from here on.
_AUGMENT_COLUMN = 512


def to_batch(source: Source, rows: Rows) -> Batch:
    """Return (x, labels) of `rows` as for evaluation; x as of `Batches`."""
    return _finish((_tensor(source.load(rows)), _tensor(source.labels[rows])))


def first_images(source: Source, count: int) -> Tensor:
    """Return the first images (N, C, H, W) of `source`, `count` or all, as `to_batch` does.

    Of clips they are the frames of the first ones, of so many that `count` are reached.
    """
    return to_batch(source, slice(0, -(-count // source.frames)))[0]


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor of the same memory, where torch may write to it."""
    return torch.from_numpy(np.require(array, requirements="W"))


def _finish(raw: _Raw) -> Batch:
    x = raw[0].contiguous(memory_format=torch.channels_last).float()
    return x.mul_(float(INPUT_SCALE)), raw[1]


@dataclass
class Batches:
    """Shuffled training batches; epoch `e` is the same whenever and wherever it is drawn.

    A batch is x (n * frames, C, H, W) float32 in [0, 1], channels last, and labels (n,) int64.

    Args:
        source: training images.
        size: items of a global batch.
        seed: of the order and of all draws; with epoch and row it decides everything.
        augment: names, see `qtool.data.augment`.
        workers: processes that decode and augment; 0: this one does.
        rank, world: yield the items ``rank::world`` of every global batch.
    """

    source: Source
    size: int
    seed: int
    augment: tuple[str, ...] = ()
    workers: int = 0
    rank: int = 0
    world: int = 1
    _loader: "_Workers | None" = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        """Steps an epoch: an incomplete last global batch is dropped."""
        return max(1, len(self.source) // self.size)

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `index` from batch `start` on; one epoch at a time.

        Raises:
            UserError: damaged data, or a worker that died.
        """
        steps = range(start, len(self))
        items = _Items(self)
        if not self.workers:
            for step in steps:
                yield _finish(items.draw(index, step))
            return
        if self._loader is None:
            self._loader = _Workers(items, self.workers)
        try:
            yield from self._loader.epoch(index, steps)
        except UserError:
            self._loader = None
            raise


class _Items(Dataset[_Raw | UserError]):
    """Batches by (epoch, step), uint8, in whichever process."""

    def __init__(self, batches: Batches) -> None:
        source, augment = batches.source, batches.augment
        self._source, self._size, self._seed = source, batches.size, batches.seed
        self._part = slice(batches.rank, None, batches.world)
        # Images that are decoded at a size of their own are cropped there, from all pixels.
        crops = RESIZED_CROP in augment and source.draws > 0
        self._own_draws = source.draws if crops or source.frames > 1 else 0
        self._augment: Augment = parse_augment(
            [name for name in augment if not (crops and name == RESIZED_CROP)]
        )
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def _rows(self, epoch: int, step: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            source, generator = self._source, epoch_generator(self._seed, epoch)
            if isinstance(source, Ordered):
                self._order = epoch, source.order(generator)
            else:
                self._order = epoch, generator.permutation(len(source))
        return self._order[1][step * self._size : (step + 1) * self._size][self._part]

    def draw(self, epoch: int, step: int) -> _Raw:
        rows = self._rows(epoch, step)
        own = None
        if self._own_draws:
            own = uniform_draws(self._seed, epoch, rows, self._own_draws)
        pixels = self._source.load(rows, own)
        if self._augment.steps:
            count = self._augment.draws
            draws = uniform_draws(self._seed, epoch, rows, count, _AUGMENT_COLUMN)
            # All frames of a clip are augmented alike.
            pixels = self._augment(pixels, draws.repeat(self._source.frames, 0))
        return _tensor(pixels), _tensor(self._source.labels[rows])

    def __getitem__(self, place: tuple[int, int]) -> _Raw | UserError:
        # Raised in a worker, an error would arrive with that process's traceback in its text.
        try:
            return self.draw(*place)
        except UserError as error:
            return error


class _Places(Sampler[tuple[int, int]]):
    """(epoch, step) of the batches that come next."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class _Workers:
    """Processes that make batches ahead; they stay from epoch to epoch."""

    def __init__(self, items: _Items, count: int) -> None:
        self._places = _Places()
        self._loader: DataLoader[Any] = DataLoader(
            items, batch_size=None, sampler=self._places, num_workers=count,
            persistent_workers=True,
        )  # fmt: skip

    def epoch(self, index: int, steps: range) -> Iterator[Batch]:
        self._places.places = [(index, step) for step in steps]
        try:
            for raw in _iterate(self._loader):
                if isinstance(raw, UserError):
                    raise raw
                yield _finish(raw)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # What a worker raised itself arrives as "Caught ... in DataLoader worker process".
            lost = "DataLoader worker (pid" in str(error) or not isinstance(
                error, RuntimeError
            )
            if not lost or str(error).startswith("Caught "):
                raise
            raise UserError(
                "a data worker was killed, perhaps for want of memory: repeat the command "
                "with --resume, and with a smaller --set workers=N if it happens again"
            ) from None


def _iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start iterating without torch's SIGCHLD handler.

    It raises wherever the program happens to be, in the middle of a training step. Without it
    a dead worker is found, within seconds, where its batch is awaited.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before)
