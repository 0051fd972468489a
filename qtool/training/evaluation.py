"""Evaluation, and the BatchNorm statistics that it needs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qtool.data.batch_source import BatchSource
from qtool.data.batches import Batch, to_batch
from qtool.data.clips import clip_logits
from qtool.data.images import Source
from qtool.nn.norm_rows import active_norms
from qtool.nn.seeded import seeded
from qtool.parallel.collectives import all_reduce_sum
from qtool.parallel.job import current


def device_of(model: nn.Module) -> torch.device:
    """Return where `model` is."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@torch.no_grad()
def predict(model: nn.Module, images: Source, batch: int = 250) -> Tensor:
    """Return logits (N, classes) of `model` in evaluation mode, in memory."""
    model.eval()
    slices = (slice(start, start + batch) for start in range(0, len(images), batch))
    return torch.cat([_logits(model, images, rows) for rows in slices])


def _logits(model: nn.Module, images: Source, rows: slice) -> Tensor:
    x, labels = to_batch(images, rows)
    logits: Tensor = model(x.to(device_of(model)))
    return clip_logits(logits.cpu(), len(labels))


@torch.no_grad()
def accuracy(model: nn.Module, images: Source, batch: int = 250) -> float:
    """Return top-1 accuracy in percent; the processes of a job share the work."""
    model.eval()
    job, right = current(), torch.zeros((), dtype=torch.float64)
    for start in range(job.rank * batch, len(images), job.size * batch):
        rows = slice(start, start + batch)
        labels = torch.from_numpy(images.labels[rows])
        right += (_logits(model, images, rows).argmax(1) == labels).sum()
    return float(100 * all_reduce_sum(right) / len(images))


@torch.no_grad()
def recalibrate_norms(model: nn.Module, batches: BatchSource[Batch], count: int) -> None:
    """Replace BatchNorm's running averages by plain averages over `count` training batches.

    The averages that training leaves behind belong to weights and bits of many steps ago. Of
    norms with several rows, those of the bits that are selected are replaced.
    """
    model.train()
    device = device_of(model)
    with fresh_statistics(active_norms(model)), seeded(batches.seed):  # of Dropout
        for _, (x, _labels) in zip(range(count), batches.epoch(0), strict=False):
            model(x.to(device))


@contextmanager
def fresh_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context the BatchNorms among `modules` average anew, all batches alike."""
    norms = [module for module in modules if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
