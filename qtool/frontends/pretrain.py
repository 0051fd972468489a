"""What every frontend shares: the float network, its loss, optimizer and pre-training."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.config import Config, MetaMixConfig
from qtool.data.batches import Batches
from qtool.data.images import DataSet
from qtool.errors import UserError
from qtool.models import model_factory
from qtool.models.normalised import normalised
from qtool.nn.control import select, selected_bits
from qtool.nn.prepare import QuantSpec, prepare
from qtool.progress import Progress
from qtool.qspec import Selection, parse_uniform
from qtool.run import CORRECTIONS, Run
from qtool.training import (
    Averages,
    Phase,
    accuracy,
    cosine,
    recalibrate_norms,
    run_phase,
)

WARMUP = 0.2


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


def load_float(run: Run) -> nn.Module:
    """Return the trained float network."""
    model = build_float(run)
    load_state(model, run, "float")
    return model


def build_prepared(run: Run, float_weights: bool = False) -> nn.Module:
    """Return the run's network with quantizers, from its initial or trained float weights."""
    config = run.config
    spec = QuantSpec(
        config.activation_bits, config.weight_bits, config.first_last_bits, config.glue_bits,
        asymmetric=config.asymmetric,
    )  # fmt: skip
    model = load_float(run) if float_weights else build_float(run)
    return prepare(model, spec, run.input_shape)


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


def make_batches(config: MetaMixConfig, data: DataSet) -> Batches:
    """Return the recipe's training batches."""
    images = data.train.head(config.train_images or None)
    size = min(config.batch_size, len(images))
    return Batches(images, size, config.seed, config.augment, config.workers)


def task_loss(config: MetaMixConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the recipe's label smoothing."""
    return functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)


def sgd(config: MetaMixConfig, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """SGD in three groups: weight tensors (decayed), BatchNorm and biases, quantizer steps."""
    groups: dict[str, list[nn.Parameter]] = {"weight": [], "plain": [], "step": []}
    for name, parameter in model.named_parameters():
        is_step = name.endswith("step")
        kind = "step" if is_step else "weight" if parameter.ndim > 1 else "plain"
        groups[kind].append(parameter)
    settings = [
        {"params": groups["weight"], "weight_decay": config.weight_decay},
        {"params": groups["plain"], "weight_decay": 0.0},
        {"params": groups["step"], "weight_decay": 0.0, "lr": lr * config.step_lr_factor},
    ]
    used = [group for group in settings if group["params"]]
    return torch.optim.SGD(used, lr=lr, momentum=config.momentum, nesterov=True)


def plain_phase(
    name: str, config: MetaMixConfig, model: nn.Module, epochs: int, lr: float, warmup: float
) -> Phase:
    """Return the phase that minimises the task loss at whatever bits are selected."""
    optimizer = sgd(config, model, lr)

    def step(x: Tensor, labels: Tensor, averages: Averages) -> str:
        logits = model(x)
        loss = task_loss(config, logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        averages.add(loss.detach(), logits, labels)
        return ""

    return Phase(name, epochs, model, [optimizer], step, lambda done: cosine(done, warmup))


def train_float(
    run: Run, config: MetaMixConfig, data: DataSet, progress: Progress, resume: bool
) -> None:
    """Train the float network; leaves ``float.safetensors``."""
    batches = make_batches(config, data)
    model = build_float(run)
    phase = plain_phase("float", config, model, config.float_epochs, config.float_lr, WARMUP)
    run_phase(phase, run, batches, progress, resume)
    recalibrate_norms(model, batches, config.norm_batches)
    result = accuracy(model, data.test)
    run.add_metrics(phase="float", test_accuracy=result)
    run.save_weights("float", model.state_dict())
    run.drop_checkpoint()
    progress.note(f"float: test accuracy {result:.2f} %")
