"""What every frontend trains with: phases that can be interrupted, and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qtool.averages import Averages
from qtool.config import TrainConfig, config_as
from qtool.data.batches import Batches, to_batch
from qtool.data.clips import clip_logits
from qtool.data.images import Source
from qtool.distributed import all_reduce_sum
from qtool.ema import Ema
from qtool.job import current
from qtool.native.allocator import keep_freed_memory
from qtool.nn.sync_norm import synchronise_norms
from qtool.progress import Progress
from qtool.quantizers.engines import why_eager
from qtool.run import Run
from qtool.schedules import Schedule, constant
from qtool.training_loop import Loop, deterministic, training_device


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
def recalibrate_norms(model: nn.Module, batches: Batches, count: int) -> None:
    """Replace BatchNorm's running averages by plain averages over `count` training batches.

    The averages that training leaves behind belong to weights and bits of many steps ago. A
    BatchNorm of momentum 0 holds constants (`qtool.models.normalised`) and keeps them.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.momentum != 0.0]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    torch.manual_seed(batches.seed)
    device = device_of(model)
    for _, (x, _labels) in zip(range(count), batches.epoch(0), strict=False):
        model(x.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


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
