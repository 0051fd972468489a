"""Phases: stretches of training that can be interrupted at any moment."""

from qtool.core.progress import Progress
from qtool.data.batch_source import BatchSource, BatchT
from qtool.native.allocator import keep_freed_memory
from qtool.nn.modules.sync_norm import synchronise_norms
from qtool.quantizers.engines import why_eager
from qtool.runs.run import Run
from qtool.settings.base import TrainConfig
from qtool.training.device import deterministic, training_device
from qtool.training.loop import Loop
from qtool.training.phase import Phase


def run_phase(
    phase: Phase[BatchT],
    run: Run,
    batches: BatchSource[BatchT],
    progress: Progress,
    resume: bool,
) -> None:
    """Train `phase`; start from its checkpoint if `resume`.

    Checkpoints are written at its start, after every epoch, and inside epochs as the recipe
    says. In the end weights are their average, if the recipe has one.

    Raises:
        UserError: a loss or a weight became infinite or NaN; no room for a checkpoint.
    """
    config = run.settings(TrainConfig)
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
