"""What every frontend shares: the float network, its loss, optimizer and pre-training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qtool.config import Config, MetaMixConfig, QatConfig, TrainConfig, config_as
from qtool.cost import LayerCost, total_bops, total_macs
from qtool.data.batches import Batches
from qtool.data.clips import clip_logits
from qtool.data.images import DataSet
from qtool.errors import UserError
from qtool.models import model_factory
from qtool.models.normalised import Normalised, normalised
from qtool.models.weights import fit_state, load_weights
from qtool.nn.control import select, selected_bits
from qtool.nn.prepare import QuantSpec, prepare
from qtool.progress import Progress
from qtool.qspec import LayerBits, Selection, layers_to_json, parse_uniform
from qtool.run import CORRECTIONS, Run
from qtool.training.averages import Averages
from qtool.training.evaluation import accuracy, recalibrate_norms
from qtool.training.job import current
from qtool.training.loop import training_device
from qtool.training.losses import Objective
from qtool.training.phases import Phase, run_phase
from qtool.training.schedules import schedule_of
from qtool.training.update import Pass, Update

# The teacher that is the float network itself, which does not exist before it is trained.
FLOAT = "float"
TrainConfigT = TypeVar("TrainConfigT", bound=TrainConfig)


def build_float(run: Run) -> nn.Module:
    """Return the run's float network, initialised from its seed."""
    return build_network(run.config, run.input_shape, run.classes)


def build_network(config: Config, shape: Sequence[int], classes: int) -> nn.Module:
    """Return the recipe's float network for images `shape` (C, H, W), from its seed."""
    torch.manual_seed(config.seed)
    network = model_factory(config.model)(in_channels=shape[0], classes=classes)
    model = normalised(network, config.mean, config.std, shape[0])
    channels_last: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return channels_last


def network_with(
    config: Config, weights: str, shape: Sequence[int], classes: int, what: str = "weights"
) -> nn.Module:
    """Return the recipe's float network with the weights in a file or a run directory.

    Args:
        config: the recipe.
        weights: path of the file or the directory.
        shape: (C, H, W) of an image.
        classes: number of logits.
        what: the setting, for the error.

    Raises:
        UserError: no such file or run, damaged, or of another network.
    """
    model, path = build_network(config, shape, classes), Path(weights)
    if path.is_dir():
        fit_state(model, Run.open(path).load_weights("float"), f"run {path}")
    else:
        network = model.network if isinstance(model, Normalised) else model
        fit_state(network, load_weights(path), f"{what} {path}")
    return model


def load_float(run: Run) -> nn.Module:
    """Return the trained float network."""
    model = build_float(run)
    load_state(model, run, "float")
    return model


def build_prepared(run: Run, float_weights: bool = False) -> nn.Module:
    """Return the run's network with quantizers, from its initial or trained float weights."""
    fixed = {} if run.config.activation_bits else run.selection().layers
    model = load_float(run) if float_weights else build_float(run)
    return prepare(model, quant_spec(run.config, fixed), run.input_shape)


def quant_spec(config: Config, layers: Mapping[str, LayerBits] | None = None) -> QuantSpec:
    """Return what `prepare` puts into the recipe's network.

    Args:
        config: the recipe.
        layers: bits of single layers, whatever the recipe says.
    """
    return QuantSpec(
        config.activation_bits, config.weight_bits, config.first_last_bits, config.glue_bits,
        asymmetric=config.asymmetric, layers=layers or {}, quantizer=config.quantizer,
        weight_quantizer=config.weight_quantizer,
        activation_quantizer=config.activation_quantizer,
    )  # fmt: skip


def bits_content(costs: Sequence[LayerCost]) -> dict[str, Any]:
    """Return what every bits.json says of its layers."""
    return {
        "bops": total_bops(costs),
        "macs": total_macs(costs),
        "layers": layers_to_json((cost.name, cost.bits) for cost in costs),
        "layer_macs": {cost.name: cost.macs for cost in costs},
    }


def load_deployed(run: Run, selection: Selection) -> nn.Module:
    """Return the run's prepared network as it is deployed at the bits of `selection`.

    Where the run holds tensors of their own for just these bits (corrections), they replace
    those of ``model.safetensors``.
    """
    model = build_prepared(run)
    load_state(model, run, "model")
    if run.has_weights(CORRECTIONS):
        wanted = selected_bits(model, selection)
        for name, tensors in split_corrections(run.load_weights(CORRECTIONS)).items():
            if selected_bits(model, Selection(default=parse_uniform(name))) == wanted:
                model.load_state_dict({**model.state_dict(), **tensors})
    select(model, selection)
    return model


def split_corrections(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group ``w4a4/name`` tensors by bits."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        bits, _, name = key.partition("/")
        groups.setdefault(bits, {})[name] = tensor
    return groups


def load_state(model: nn.Module, run: Run, stage: str) -> None:
    """Load the weights of `stage`, which must fit the recipe's model."""
    try:
        model.load_state_dict(run.load_weights(stage))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"run {run.folder}: {stage}.safetensors does not fit model "
            f"{run.config.model}: {reason}"
        ) from None


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
    training_device(config)
    make_batches(config, data)
    if config.teacher:
        load_teacher(config, data.shape, data.classes)


def plain_phase(
    name: str,
    config: TrainConfig,
    model: nn.Module,
    epochs: int,
    lr: float,
    warmup: float | None = None,
) -> Phase:
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

    def losses(x: Tensor, labels: Tensor) -> Iterator[Pass]:
        logits = clip_logits(model(x), len(labels))
        yield objective.on(x, labels)(logits), logits

    def step(x: Tensor, labels: Tensor, averages: Averages) -> str:
        update(losses, x, labels, averages)
        return ""

    schedule = schedule_of(config, warmup)
    return Phase(name, epochs, model, [update.optimizer], step, schedule, ema=update.ema)


def train_float(
    run: Run,
    config: TrainConfig,
    epochs: int,
    lr: float,
    data: DataSet,
    progress: Progress,
    resume: bool,
) -> None:
    """Train the float network for `epochs` at `lr`; leaves ``float.safetensors``."""
    batches = make_batches(config, data)
    model = build_float(run)
    phase = plain_phase("float", config, model, epochs, lr)
    run_phase(phase, run, batches, progress, resume)
    recalibrate_norms(model, batches, config.norm_batches)
    save_float(run, model, data, progress)
    run.drop_checkpoint()


def make_float(
    run: Run,
    config: QatConfig | MetaMixConfig,
    data: DataSet,
    progress: Progress,
    resume: bool,
) -> None:
    """Take the recipe's float weights, or train some; leaves ``float.safetensors``."""
    if config.weights:
        model = network_with(config, config.weights, data.shape, data.classes)
        save_float(run, model, data, progress)
    else:
        config = with_teacher(config, "")
        train_float(run, config, config.float_epochs, config.float_lr, data, progress, resume)


def with_teacher(config: TrainConfigT, weights: str | Path) -> TrainConfigT:
    """Return `config` with `weights` as its teacher, where that is its own float network."""
    return replace(config, teacher=str(weights)) if config.teacher == FLOAT else config


def save_quantized(
    run: Run, name: str, model: nn.Module, batches: Batches, data: DataSet, progress: Progress
) -> None:
    """Finish phase `name` at the bits that are selected; leaves ``model.safetensors``."""
    config = config_as(run.config, TrainConfig, f"run {run.folder}")
    recalibrate_norms(model, batches, config.norm_batches)
    result = accuracy(model, data.test)
    run.add_metrics(phase=name, test_accuracy=result)
    run.save_weights("model", model.state_dict())
    progress.note(f"fake-quantized: test accuracy {result:.2f} %")


def save_float(run: Run, model: nn.Module, data: DataSet, progress: Progress) -> None:
    """Measure the float network and save it as ``float.safetensors``."""
    result = accuracy(model, data.test)
    run.add_metrics(phase="float", test_accuracy=result)
    run.save_weights("float", model.state_dict())
    progress.note(f"float: test accuracy {result:.2f} %")
