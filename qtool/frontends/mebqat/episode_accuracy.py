"""How well prototypes tell new classes apart, by three accuracies at the same pair of bits.

nearest        the nearest prototype, with the BatchNorm statistics that are deployed
device         the same, with the layer of integers that prototypes become (`qtool adapt`): the
               answers of the exported file
transductive   the nearest prototype, BatchNorm on each episode's support and query images
               together, as the released code of MEBQAT evaluates; no device can do that
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qtool.data.batches import to_batch
from qtool.data.episodes import EpisodeDraws
from qtool.data.images import Source
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.norm_rows import active_norms
from qtool.nn.prototype_head import fit_head, head_alone
from qtool.nn.prototypes import prototype_logits, prototypes
from qtool.training.episode_tests import EpisodeAccuracy
from qtool.training.evaluation import device_of

_BATCH = 250
# (prototypes, support, query) -> logits of the queries
Answer = Callable[[Tensor, Tensor, Tensor], Tensor]
# Test episodes are drawn as those of an epoch that training never has.
TEST_EPOCH = 0


class EmbeddedEpisodes:
    """Test episodes, each of their images embedded once, as the device would.

    Args:
        model: the prepared embedding, at bits and with norms that are selected.
        images: test images.
        draws: which of them the episodes have.
        episodes: how many.
    """

    def __init__(
        self, model: nn.Module, images: Source, draws: EpisodeDraws, episodes: int
    ) -> None:
        rows = np.stack([draws.rows(TEST_EPOCH, number) for number in range(episodes)])
        used, places = np.unique(rows, return_inverse=True)
        self._draws, self._places = draws, places.reshape(rows.shape)
        self._embedded = _embedded(model.eval(), images, used)

    def nearest(self) -> EpisodeAccuracy:
        """Return the accuracy of the nearest prototype, in floating point."""
        return EpisodeAccuracy.of([_right(e, self._draws, _nearest) for e in self._each()])

    def on_device(self, grid: FakeQuantizer) -> EpisodeAccuracy:
        """Return the accuracy of the layer of integers that prototypes become.

        Args:
            grid: of the embeddings.
        """
        head = head_alone(self._embedded.shape[1], self._draws.size.ways, grid)

        def answer(centres: Tensor, support: Tensor, query: Tensor) -> Tensor:
            fit_head(head, centres, support)
            logits: Tensor = head(query)
            return logits

        return EpisodeAccuracy.of([_right(e, self._draws, answer) for e in self._each()])

    def _each(self) -> Iterator[Tensor]:
        """Yield the embeddings (ways, shots + queries, D) of each episode."""
        return (self._embedded[places] for places in self._places)


@torch.no_grad()
def transductive_accuracy(
    model: nn.Module, images: Source, draws: EpisodeDraws, episodes: int
) -> EpisodeAccuracy:
    """Return the accuracy of the nearest prototype, BatchNorm on the images of each episode.

    Args:
        model: the prepared embedding.
        images: test images.
        draws: which of them the episodes have.
        episodes: how many.
    """
    shares = []
    with batch_statistics(model):
        for number in range(episodes):
            rows = draws.rows(TEST_EPOCH, number)
            x, _ = to_batch(images, rows.reshape(-1))
            embedded = model(x.to(device_of(model))).float().cpu()
            shares.append(_right(embedded.unflatten(0, rows.shape), draws, _nearest))
    return EpisodeAccuracy.of(shares)


@torch.no_grad()
def _embedded(model: nn.Module, images: Source, rows: NDArray[np.int64]) -> Tensor:
    """Return the embeddings (N, D) of images `rows`."""
    parts = []
    for start in range(0, len(rows), _BATCH):
        x, _ = to_batch(images, rows[start : start + _BATCH])
        parts.append(model(x.to(device_of(model))).float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def _right(embedded: Tensor, draws: EpisodeDraws, answer: Answer) -> float:
    """Return the share of queries that get the largest logit for their own class.

    Args:
        embedded: (ways, shots + queries, D).
        draws: say how many are shots.
        answer: makes logits.
    """
    ways, shots = draws.size.ways, draws.size.shots
    support, query = embedded[:, :shots].flatten(0, 1), embedded[:, shots:].flatten(0, 1)
    labels = torch.arange(ways)
    centres = prototypes(support, labels.repeat_interleave(shots), ways)
    answers = answer(centres, support, query).argmax(1)
    right = answers == labels.repeat_interleave(draws.size.queries)
    return float(right.double().mean())


def _nearest(centres: Tensor, _support: Tensor, query: Tensor) -> Tensor:
    return prototype_logits(query, centres)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Within this context BatchNorm normalises with its batch; its statistics stay."""
    norms = active_norms(model)
    model.train()
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        model.eval()
