"""The training loop: batches, learning rates, checkpoints, and the same bits every time.

The same command on the same machine gives the same bits, interrupted or not: batches depend on
(seed, epoch, position), random numbers on (seed, epoch, process) or on the checkpoint, and
algorithms are deterministic where there is a choice.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qtool.config import TrainConfig
from qtool.data.batches import Batch, Batches
from qtool.errors import UserError
from qtool.progress import Progress
from qtool.run import Checkpoint, Run
from qtool.training.averages import Averages
from qtool.training.checkpointing import pack, unpack
from qtool.training.distributed import any_process
from qtool.training.job import ProcessError, current

if TYPE_CHECKING:
    from qtool.training.phases import Phase

# Batches between two looks at the loss: a look waits for a GPU, and for the other processes.
_LOOK = 10


def training_device(config: TrainConfig) -> torch.device:
    """Return where the recipe trains.

    Raises:
        UserError: it asks for a GPU that is not there.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise UserError(
            "recipe setting device: got cuda, but torch finds no GPU; use auto or cpu"
        )
    if config.device == "cpu" or not has_gpu:
        return torch.device("cpu")
    return torch.device("cuda", current().local_rank)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Choose deterministic algorithms; where an operator has none, torch warns."""
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic  # a module with a property
    fill = memory.fill_uninitialized_memory
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill


@dataclass
class Loop:
    """Trains one phase, from its start or from its checkpoint."""

    phase: "Phase"
    run: Run
    batches: Batches
    progress: Progress
    config: TrainConfig
    device: torch.device

    def train(self, resume: bool) -> None:
        """Train to the end of the phase; `resume` continues where its checkpoint ends.

        Raises:
            UserError: a loss or a weight became infinite or NaN; no room for a checkpoint.
        """
        phase, steps = self.phase, len(self.batches)
        self.rates = [[g["lr"] for g in opt.param_groups] for opt in phase.optimizers]
        averages = Averages()
        epoch, start = self._begin(averages, resume)
        self.progress.start(phase.name, (phase.epochs - epoch) * steps - start)
        self.saved_at = time.monotonic()
        while epoch < phase.epochs:
            if start == 0:
                averages = Averages()
                self._seed(epoch)
            self._epoch(epoch, start, averages)
            epoch, start = epoch + 1, 0
            results = {"loss": averages.loss, "accuracy": averages.accuracy}
            self.run.add_metrics(phase=phase.name, epoch=epoch, **results)
            self._save(epoch, 0, averages)
        self._set_rates(1.0)

    def _begin(self, averages: Averages, resume: bool) -> tuple[int, int]:
        """Return (epochs, batches) that are done; without any, write a first checkpoint."""
        saved = self.run.load_checkpoint() if resume else None
        self.run.remove_leftovers()
        if saved is None or saved.phase != self.phase.key:
            self._save(0, 0, averages)
            return 0, 0
        self._seed(saved.epochs_done)  # where the checkpoint knows nothing of this process
        unpack(self.phase, saved, averages)
        self.run.rewind(saved)
        return saved.epochs_done, saved.batches_done

    def _seed(self, epoch: int) -> None:
        """Seed what dropout draws from, differently in every process."""
        torch.manual_seed((self.batches.seed * 100_003 + epoch) * 1009 + current().rank)

    def _epoch(self, epoch: int, start: int, averages: Averages) -> None:
        phase, steps = self.phase, len(self.batches)
        phase.model.train()
        batches = _own_errors(self.batches.epoch(epoch + 1, start))
        for index, (x, labels) in enumerate(batches, start):
            self._set_rates(phase.schedule((epoch * steps + index) / (phase.epochs * steps)))
            x, labels = x.to(self.device, non_blocking=True), labels.to(self.device)
            note = phase.step(x, labels, averages)
            done = index + 1
            if done % _LOOK == 0 or done == steps or self._is_step_due(done):
                self._look(epoch, averages)
                if done < steps and (self._is_step_due(done) or self._is_time_due()):
                    self._save(epoch, done, averages)
            self.progress.step(
                " ".join(f"epoch {epoch + 1}/{phase.epochs} {averages.text()} {note}".split())
            )

    def _set_rates(self, factor: float) -> None:
        for opt, rates in zip(self.phase.optimizers, self.rates, strict=True):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    def _look(self, epoch: int, averages: Averages) -> None:
        averages.look()
        if not averages.is_finite:
            raise self._diverged(epoch, f"the loss became {float(averages.totals[0])}")

    def _diverged(self, epoch: int, what: str) -> UserError:
        return UserError(
            f"{self.phase.name} epoch {epoch + 1}: {what}; the last good checkpoint is kept: "
            "lower the learning rate (--set) and train again"
        )

    def _is_step_due(self, done: int) -> bool:
        return self.config.checkpoint_steps > 0 and done % self.config.checkpoint_steps == 0

    def _is_time_due(self) -> bool:
        """True in all processes when it is in one."""
        minutes = self.config.checkpoint_minutes
        elapsed = time.monotonic() - self.saved_at
        return minutes > 0 and any_process(elapsed >= minutes * 60)

    def _save(self, epoch: int, batch: int, averages: Averages) -> None:
        """Write a checkpoint: `epoch` whole epochs and `batch` batches are done."""
        for name, parameter in self.phase.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise self._diverged(epoch, f"{name} is no longer finite")
        tensors = pack(self.phase, averages)
        self.run.save_checkpoint(Checkpoint(self.phase.key, epoch, batch, tensors))
        self.saved_at = time.monotonic()


def _own_errors(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield `batches`; in a job, an error in them is this process's own."""
    try:
        yield from batches
    except UserError as error:
        job = current()
        if job.size == 1:
            raise
        raise ProcessError(f"process {job.rank} of {job.size}: {error}") from None
