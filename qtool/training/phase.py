"""A phase: a stretch of training that can be interrupted at any moment."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic

import torch
from torch import Tensor, nn

from qtool.data.batch_source import BatchT
from qtool.training.averages import Averages
from qtool.training.ema import Ema
from qtool.training.schedules import Schedule, constant


@dataclass
class Phase(Generic[BatchT]):
    """A stretch of training that can be interrupted at any moment.

    Args:
        name: as in checkpoints and metrics.
        epochs: passes over the training batches.
        model: module whose state is saved.
        optimizers: their states are saved too; learning rates follow `schedule`.
        step: does one batch, which is where the model is, and returns what the progress line
            shows.
        schedule: learning-rate factor at the share of the phase that is done.
        extra: further tensors to save (architecture parameters); restored in place.
        tag: a checkpoint is only continued by a phase of equal name and tag.
        ema: average of the weights, which replaces them at the end.
    """

    name: str
    epochs: int
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    step: Callable[[BatchT, Averages], str]
    schedule: Schedule = constant
    extra: dict[str, Tensor] = field(default_factory=dict)
    tag: str = ""
    ema: Ema | None = None

    def __post_init__(self) -> None:
        if self.ema is not None:
            self.extra = {**self.extra, **self.ema.tensors()}

    @property
    def key(self) -> str:
        """What its checkpoints are marked with."""
        return f"{self.name} {self.tag}".rstrip()
