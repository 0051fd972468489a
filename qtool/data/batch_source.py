"""What training draws its batches from: images in one order an epoch, episodes, or other sets.

A batch is a tensor, or tuples and dataclasses of batches, such as (x, labels) or an episode's
support and query sets. Everything else in it (names, numbers) is left as it is.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)


class BatchSource(Protocol[BatchT_co]):
    """Batches by epoch and position: the same ones whenever and wherever they are drawn.

    That is what lets training go on at any batch and end in the same bits. In a job of several
    processes each of them has a source of its own share, all of equal length and seed.
    """

    @property
    def seed(self) -> int:
        """Of everything that is drawn; training's other random numbers start from it too."""

    def __len__(self) -> int:
        """Batches an epoch."""

    def epoch(self, index: int, start: int = 0) -> Iterator[BatchT_co]:
        """Yield the batches of epoch `index`, without the first `start`."""


def to_device(batch: BatchT, device: torch.device) -> BatchT:
    """Return `batch` with every tensor on `device`."""
    return _map(batch, lambda tensor: tensor.to(device, non_blocking=True))


def parts_of(batch: BatchT, count: int) -> list[BatchT]:
    """Return `batch` in `count` parts of equal size, in order.

    Every tensor is cut along its first axis: that of images, or of a batch's episodes.

    Raises:
        ValueError: some tensor does not divide.
    """
    if count == 1:
        return [batch]

    def part(index: int) -> Callable[[Tensor], Tensor]:
        def cut(tensor: Tensor) -> Tensor:
            if len(tensor) % count:
                raise ValueError(f"a tensor of {len(tensor)} does not divide into {count}")
            return tensor.chunk(count)[index]

        return cut

    return [_map(batch, part(index)) for index in range(count)]


def _map(batch: BatchT, change: Callable[[Tensor], Tensor]) -> BatchT:
    return cast(BatchT, _mapped(batch, change))


def _mapped(batch: object, change: Callable[[Tensor], Tensor]) -> object:
    """Return `batch` with `change` made to every tensor in it."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, tuple):
        items: list[Any] = [_mapped(item, change) for item in batch]
        # A named tuple takes its fields one by one.
        return type(batch)(*items) if hasattr(batch, "_fields") else tuple(items)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = [field.name for field in dataclasses.fields(batch) if field.init]
        changed = {name: _mapped(getattr(batch, name), change) for name in fields}
        return dataclasses.replace(batch, **changed)
    return batch
