"""Phases: stretches of training that can be interrupted at any moment."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qtool.config import TrainConfig, config_as
from qtool.data.batches import Batches
from qtool.native.allocator import keep_freed_memory
from qtool.nn.sync_norm import synchronise_norms
from qtool.progress import Progress
from qtool.quantizers.engines import why_eager
from qtool.run import Run
from qtool.training.averages import Averages
from qtool.training.ema import Ema
from qtool.training.loop import Loop, deterministic, training_device
from qtool.training.schedules import Schedule, constant


@dataclass
class Phase:
    """A stretch of training that can be interrupted at any moment.

    Args:
        name: as in checkpoints and metrics.
        epochs: passes over the training batches.
        model: module whose state is saved.
        optimizers: their states are saved too; learning rates follow `schedule`.
        step: does one batch, returns what the progress line shows.
        schedule: learning-rate factor at the share of the phase that is done.
        extra: further tensors to save (architecture parameters); restored in place.
        tag: a checkpoint is only continued by a phase of equal name and tag.
        ema: average of the weights, which replaces them at the end.
    """

    name: str
    epochs: int
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    step: Callable[[Tensor, Tensor, Averages], str]
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


def run_phase(
    phase: Phase, run: Run, batches: Batches, progress: Progress, resume: bool
) -> None:
    """Train `phase`; start from its checkpoint if `resume`.

    Checkpoints are written at its start, after every epoch, and inside epochs as the recipe
    says. In the end weights are their average, if the recipe has one.

    Raises:
        UserError: a loss or a weight became infinite or NaN; no room for a checkpoint.
    """
    config = config_as(run.config, TrainConfig, f"run {run.folder}")
    device = training_device(config)
    keep_freed_memory()
    if reason := why_eager(device):
        progress.note(f"quantizers take several passes over memory: {reason}")
    synchronise_norms(phase.model)
    phase.model.to(device)
    for tensor in phase.extra.values():
        tensor.data = tensor.data.to(device)
    with deterministic(device):
        Loop(phase, run, batches, progress, config, device).train(resume)
    if phase.ema is not None:
        phase.ema.copy_to_model()
