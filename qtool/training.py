"""One training loop for every frontend: schedule, evaluation, resumable phases."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from qtool.data.batches import Batches, to_batch
from qtool.data.images import Source
from qtool.errors import UserError
from qtool.progress import Progress
from qtool.run import Checkpoint, Run


@torch.no_grad()
def predict(model: nn.Module, images: Source, batch: int = 250) -> Tensor:
    """Return logits (N, classes) of `model` in evaluation mode."""
    model.eval()
    slices = (slice(start, start + batch) for start in range(0, len(images), batch))
    return torch.cat([model(to_batch(images, rows)[0]) for rows in slices])


def accuracy(model: nn.Module, images: Source) -> float:
    """Return top-1 accuracy in percent."""
    right = predict(model, images).argmax(1).numpy() == images.labels
    return float(100 * np.mean(right))


@torch.no_grad()
def recalibrate_norms(model: nn.Module, batches: Batches, count: int) -> None:
    """Replace BatchNorm's running averages by plain averages over `count` training batches.

    The averages that training leaves behind belong to weights and bits of many steps ago.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for _, (x, _labels) in zip(range(count), batches.epoch(0), strict=False):
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def cosine(progress: float, warmup: float = 0.0) -> float:
    """Learning-rate factor at `progress` in [0, 1): linear warm-up, then half a cosine."""
    if progress < warmup:
        return 0.05 + 0.95 * progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@dataclass
class Averages:
    """Running loss and accuracy of an epoch."""

    loss: float = 0.0
    right: float = 0.0
    count: int = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count one batch."""
        self.loss += loss.item() * len(labels)
        self.right += float((logits.argmax(1) == labels).sum())
        self.count += len(labels)

    def text(self) -> str:
        """``loss 0.512 acc 88.1 %``."""
        return f"loss {self.loss / self.count:.3f} acc {100 * self.right / self.count:.1f} %"


@dataclass
class Phase:
    """A stretch of training that can be interrupted after any epoch.

    Args:
        name: as in checkpoints and metrics.
        epochs: passes over the training batches.
        model: module whose state is saved.
        optimizers: their states are saved too; learning rates follow `schedule`.
        step: does one batch, returns what the progress line shows.
        schedule: learning-rate factor at the share of the phase that is done.
        extra: further tensors to save (architecture parameters).
        tag: a checkpoint is only continued by a phase of equal name and tag.
    """

    name: str
    epochs: int
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    step: Callable[[Tensor, Tensor, Averages], str]
    schedule: Callable[[float], float] = lambda _: 1.0
    extra: dict[str, Tensor] = field(default_factory=dict)
    tag: str = ""

    @property
    def key(self) -> str:
        """What its checkpoints are marked with."""
        return f"{self.name} {self.tag}".rstrip()


def run_phase(
    phase: Phase, run: Run, batches: Batches, progress: Progress, resume: bool
) -> None:
    """Train `phase`, saving a checkpoint after every epoch; start from one if `resume`."""
    first = _restore(phase, run) if resume else 0
    base = [[group["lr"] for group in opt.param_groups] for opt in phase.optimizers]
    total = phase.epochs * len(batches)
    progress.start(phase.name, total - first * len(batches))
    for epoch in range(first, phase.epochs):
        averages = Averages()
        phase.model.train()
        # Dropout draws from this generator; a resumed epoch must draw the same.
        torch.manual_seed(batches.seed * 100_003 + epoch)
        for index, (x, labels) in enumerate(batches.epoch(epoch + 1)):
            factor = phase.schedule((epoch * len(batches) + index) / total)
            for opt, rates in zip(phase.optimizers, base, strict=True):
                for group, rate in zip(opt.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            note = phase.step(x, labels, averages)
            if not math.isfinite(averages.loss):
                raise UserError(
                    f"{phase.name} epoch {epoch + 1}: the loss became {averages.loss}; "
                    "the last good checkpoint is kept: lower the learning rate (--set), "
                    "then --resume"
                )
            progress.step(
                f"epoch {epoch + 1}/{phase.epochs} {averages.text()} {note}".rstrip()
            )
        _save(phase, run, epoch + 1)
        run.add_metrics(phase=phase.name, epoch=epoch + 1, loss=averages.loss / averages.count)
    for opt, rates in zip(phase.optimizers, base, strict=True):
        for group, rate in zip(opt.param_groups, rates, strict=True):
            group["lr"] = rate


def _save(phase: Phase, run: Run, epochs_done: int) -> None:
    tensors = {f"model.{k}": v for k, v in phase.model.state_dict().items()}
    tensors |= {f"extra.{k}": v.detach() for k, v in phase.extra.items()}
    for index, opt in enumerate(phase.optimizers):
        for key, state in opt.state_dict()["state"].items():
            values = {n: torch.as_tensor(v) for n, v in state.items() if v is not None}
            tensors |= {f"optim.{index}.{key}.{n}": v for n, v in values.items()}
    run.save_checkpoint(Checkpoint(phase.key, epochs_done, tensors))


def _restore(phase: Phase, run: Run) -> int:
    """Load the checkpoint if it belongs to `phase`; return the number of epochs done."""
    saved = run.load_checkpoint()
    if saved is None or saved.phase != phase.key:
        return 0
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "extra": {}, "optim": {}}
    for name, tensor in saved.tensors.items():
        kind, _, rest = name.partition(".")
        groups[kind][rest] = tensor
    phase.model.load_state_dict(groups["model"])
    with torch.no_grad():
        for name, tensor in phase.extra.items():
            tensor.copy_(groups["extra"][name])
    for index, opt in enumerate(phase.optimizers):
        _load_optimizer(opt, index, groups["optim"])
    return saved.epochs_done


def _load_optimizer(opt: torch.optim.Optimizer, index: int, saved: dict[str, Tensor]) -> None:
    content = opt.state_dict()
    for name, tensor in saved.items():
        which, key, field_name = name.split(".", 2)
        if int(which) == index:
            content["state"].setdefault(int(key), {})[field_name] = tensor
    opt.load_state_dict(content)
