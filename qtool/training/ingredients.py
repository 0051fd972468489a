"""What a training frontend is made of: batches, objective, teacher, phases, results."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import nn

from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.data.batches import Batch, Batches, first_images
from qtool.data.clips import clip_logits
from qtool.data.images import DataSet
from qtool.networks import load_float, network_with
from qtool.nn.control import calibrate, start_clipping
from qtool.nn.prepare.admit import output_faults
from qtool.parallel.job import current
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import TrainConfig
from qtool.training.averages import Averages
from qtool.training.device import training_device
from qtool.training.evaluation import accuracy, recalibrate_norms
from qtool.training.losses import Objective
from qtool.training.phase import Phase
from qtool.training.schedules import schedule_of
from qtool.training.update import Pass, Update

# The teacher that is the float network itself, which does not exist before it is trained.
FLOAT = "float"
# Training images, the first ones, that activation grids start from.
CALIBRATION_IMAGES = 512
TrainConfigT = TypeVar("TrainConfigT", bound=TrainConfig)


def make_batches(config: TrainConfig, data: DataSet) -> Batches:
    """Return the recipe's training batches, this process's share of them.

    Raises:
        UserError: a batch cannot be shared equally.
    """
    images, job = data.train.head(config.train_images or None), current()
    size = min(config.batch_size, len(images))
    parts = job.size * config.accumulate
    if size % parts:
        raise UserError(
            f"recipe setting batch_size: got {size}, expected a multiple of {parts}: "
            f"{job.size} processes times accumulate={config.accumulate}"
        )
    return Batches(
        images, size, config.seed, config.augment, config.workers, job.rank, job.size
    )


def fit_grids(config: TrainConfig, model: nn.Module, batches: Batches, images: int) -> None:
    """Start the grids of a prepared `model`: from training images, or as the recipe says.

    Args:
        config: the recipe.
        model: with the weights that grids are to fit.
        batches: of training images.
        images: the first ones, how many.
    """
    calibrate(model, first_images(batches.source, images))
    if config.pact_init:
        start_clipping(model, config.pact_init)


def make_objective(config: TrainConfig) -> Objective:
    """Return the recipe's loss, with its teacher if it has one."""
    if not config.teacher:
        return Objective(config)
    return Objective(config, partial(load_teacher, config))


def load_teacher(config: TrainConfig, shape: Sequence[int], classes: int) -> nn.Module:
    """Return the recipe's teacher, with its weights.

    Args:
        config: names it.
        shape: (C, H, W) of an image.
        classes: number of logits.

    Raises:
        UserError: no such file or run, damaged, of other images or of another network.
    """
    path = Path(config.teacher)
    if path.is_dir():
        run = Run.open(path)
        if (run.input_shape, run.classes) != (tuple(shape), classes):
            raise UserError(
                f"teacher {path} was trained on {run.classes} classes of {run.input_shape}, "
                f"the data set has {classes} of {tuple(shape)}"
            )
        return load_float(run)
    named = replace(config, model=config.teacher_model or config.model)
    return network_with(named, config.teacher, shape, classes, "teacher")


def check_training(config: TrainConfig, data: DataSet) -> None:
    """Refuse, before anything is written, what training would refuse."""
    data.require_seen()
    training_device(config)
    make_batches(config, data)
    if config.teacher:
        teacher = load_teacher(config, data.shape, data.classes)
        if faults := output_faults(teacher, data.shape, data.classes):
            raise UserError(f"teacher {config.teacher}: {'; '.join(faults)}")


def plain_phase(
    name: str,
    config: TrainConfig,
    model: nn.Module,
    epochs: int,
    lr: float,
    warmup: float | None = None,
) -> Phase[Batch]:
    """Return the phase that minimises the task loss at whatever bits are selected.

    Args:
        name: of the phase.
        config: loss, optimizer, schedule.
        model: what is trained.
        epochs: passes over the training images.
        lr: learning rate of the weights.
        warmup: share of the phase; None: the recipe's.
    """
    update, objective = Update(config, model, lr), make_objective(config)

    def losses(batch: Batch) -> Iterator[Pass]:
        x, labels = batch
        # A network of the user's may write to its images in place; a teacher sees them too.
        logits = clip_logits(model(x.clone()), len(labels))
        yield Pass(objective.on(x, labels)(logits), logits, labels)

    def step(batch: Batch, averages: Averages) -> str:
        update(losses, batch, averages)
        return ""

    schedule = schedule_of(config, warmup)
    return Phase(name, epochs, model, [update.optimizer], step, schedule, ema=update.ema)


def with_teacher(config: TrainConfigT, weights: str | Path) -> TrainConfigT:
    """Return `config` with `weights` as its teacher, where that is its own float network."""
    return replace(config, teacher=str(weights)) if config.teacher == FLOAT else config


def settings_of(run: Run, kind: type[TrainConfigT]) -> TrainConfigT:
    """Return the run's recipe, a `kind`; a teacher "float" is the run itself."""
    return with_teacher(run.settings(kind), run.folder)


def save_quantized(
    run: Run, name: str, model: nn.Module, batches: Batches, data: DataSet, progress: Progress
) -> None:
    """Finish phase `name` at the bits that are selected; leaves ``model.safetensors``."""
    config = run.settings(TrainConfig)
    recalibrate_norms(model, batches, config.norm_batches)
    result = accuracy(model, data.test)
    run.add_metrics(phase=name, test_accuracy=result)
    run.save_weights(Stage.MODEL, model.state_dict())
    progress.note(f"fake-quantized: test accuracy {result:.2f} %")
