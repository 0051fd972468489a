"""The training loop: batches, learning rates, checkpoints, and the same bits every time.

The same command on the same machine gives the same bits, interrupted or not: batches depend on
(seed, epoch, position), random numbers on (seed, epoch, process) or on the checkpoint, and
algorithms are deterministic where there is a choice.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

import torch

from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.data.batch_source import BatchSource, BatchT, to_device
from qtool.parallel.collectives import any_process
from qtool.parallel.job import ProcessError, current
from qtool.runs.checkpoint import Checkpoint, load_checkpoint, rewind, save_checkpoint
from qtool.runs.run import Run
from qtool.settings.base import TrainConfig
from qtool.training.averages import Averages
from qtool.training.checkpointing import pack, unpack

if TYPE_CHECKING:
    from qtool.training.phase import Phase

# Batches between two looks at the loss: a look waits for a GPU, and for the other processes.
_LOOK = 10


@dataclass
class Loop(Generic[BatchT]):
    """Trains one phase, from its start or from its checkpoint."""

    phase: "Phase[BatchT]"
    run: Run
    batches: BatchSource[BatchT]
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
        saved = load_checkpoint(self.run) if resume else None
        self.run.remove_leftovers()
        if saved is None or saved.phase != self.phase.key:
            self._save(0, 0, averages)
            return 0, 0
        self._seed(saved.epochs_done)  # where the checkpoint knows nothing of this process
        unpack(self.phase, saved, averages)
        rewind(self.run, saved)
        return saved.epochs_done, saved.batches_done

    def _seed(self, epoch: int) -> None:
        """Seed what dropout draws from, differently in every process."""
        torch.manual_seed((self.batches.seed * 100_003 + epoch) * 1009 + current().rank)

    def _epoch(self, epoch: int, start: int, averages: Averages) -> None:
        phase, steps = self.phase, len(self.batches)
        phase.model.train()
        batches = _own_errors(self.batches.epoch(epoch + 1, start))
        for index, batch in enumerate(batches, start):
            self._set_rates(phase.schedule((epoch * steps + index) / (phase.epochs * steps)))
            note = phase.step(to_device(batch, self.device), averages)
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
        save_checkpoint(self.run, Checkpoint(self.phase.key, epoch, batch, tensors))
        self.saved_at = time.monotonic()


def _own_errors(batches: Iterator[BatchT]) -> Iterator[BatchT]:
    """Yield `batches`; in a job, an error in them is this process's own."""
    try:
        yield from batches
    except UserError as error:
        job = current()
        if job.size == 1:
            raise
        raise ProcessError(f"process {job.rank} of {job.size}: {error}") from None
