"""Recipes are frozen dataclasses; ``--set key=value`` overrides a field, type-checked.

Every frontend has a class of its own, `CONFIGS` says which; what the run directory, the export
and the check read is in their common base.
"""

import dataclasses
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from qtool.data.augment import parse_augment
from qtool.errors import UserError, unknown_name
from qtool.qspec import ACTIVATION_BITS, FLOAT_WIDTHS, WEIGHT_BITS, parse_uniform
from qtool.quantizers import QUANTIZERS


@dataclass(frozen=True)
class Config:
    """What every frontend's settings have: the network, its images and its quantizers.

    Args:
        name: the recipe.
        model: network, as in `qtool list models`.
        dataset: images, as in `qtool list datasets`.
        frontend: who makes the run: a key of `CONFIGS`.
        activation_bits: candidates of every inner layer's input.
        weight_bits: bits, or candidates, of every inner layer's weight.
        first_last_bits: weights and inputs of the first and the last layer; 32: float.
        glue_bits: residual, pooling and output tensors.
        mean, std: per channel: the network sees (pixel / 255 - mean) / std; empty: as it is.
        asymmetric: signed activations have zero points that fit their range.
        quantizer: of weights and layer inputs, as in `qtool.quantizers.QUANTIZERS`.
        weight_quantizer, activation_quantizer: of one of them, if another; empty: `quantizer`.
        batch_size: images at a time.
        train_images: training images that are used, the first ones; 0 for all.
        image_size: side of images that are files, in pixels; 0: usual of the data set.
        frames: images a clip, of video; 0: 8.
        seed: of everything that is drawn.
    """

    name: str
    model: str
    dataset: str
    frontend: str = ""
    activation_bits: tuple[int, ...] = (8, 4, 3)
    weight_bits: int | tuple[int, ...] = 4
    first_last_bits: int = 8
    glue_bits: int = 8
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    asymmetric: bool = False
    quantizer: str = "lsq"
    weight_quantizer: str = ""
    activation_quantizer: str = ""
    batch_size: int = 128
    train_images: int = 0
    image_size: int = 0
    frames: int = 0
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig(Config):
    """What every frontend that trains has: data, loss, optimizer, schedule, machine.

    Args:
        augment: what is done to training images, as in `qtool.data.augment`.
        workers: processes that decode images ahead, for data that is not in memory.
        label_smoothing: of the cross-entropy.
        optimizer: sgd (Nesterov momentum), adam or adamw.
        momentum: of sgd.
        weight_decay: of weight tensors; BatchNorm and biases have none.
        alpha_weight_decay: of clipping levels ("alpha", PACT).
        step_lr_factor: learning rate of quantizers' parameters, relative to the weights'.
        clip_norm: largest norm of all gradients together; 0 for any.
        accumulate: parts that a batch is computed in, one after the other.
        ema: decay of the average of all weights that is evaluated and saved; 0 for none.
        schedule: cosine or multistep, of the learning rate.
        warmup: share of a phase in which the learning rate grows.
        milestones: multistep: shares of a phase after which the rate is multiplied.
        gamma: multistep: by what.
        norm_batches: whose statistics replace BatchNorm's running averages after a phase.
        teacher: float weights to distil from, a file or a run directory; empty for none.
        teacher_model: the network of a teacher's weights file; empty: the same as `model`.
        distill_weight: share of the loss that compares with the teacher.
        temperature: at which it does.
        device: cpu, cuda, or auto: cuda where there is one.
        autocast: compute in bfloat16 what `torch.autocast` does.
        checkpoint_minutes: a checkpoint is written that often inside an epoch; 0: at its end.
        checkpoint_steps: and after so many batches; 0: at its end.
    """

    augment: tuple[str, ...] = ("flip",)
    workers: int = 0
    label_smoothing: float = 0.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    alpha_weight_decay: float = 5e-4
    step_lr_factor: float = 0.1
    clip_norm: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    norm_batches: int = 40
    teacher: str = ""
    teacher_model: str = ""
    distill_weight: float = 0.5
    temperature: float = 4.0
    device: str = "auto"
    autocast: bool = False
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int = 0


@dataclass(frozen=True)
class MetaMixConfig(TrainConfig):
    """MetaMix (arXiv 2311.06798): what its phases do, in order.

    Args:
        weights: float weights to start from, a file or a run directory; empty for none.
        float_epochs: of float pre-training, where there are no `weights`.
        float_lr: learning rate then.
        meta_epochs: of bit-meta (paper, Table 1).
        meta_lr: learning rate then, and of bit-meta beside bit-search.
        search_epochs: of bit-meta and bit-search in turn on each batch.
        search_lambda: lambda of Eq. 3, per GBOP: the paper's 1 belongs to 5.3 GBOPs, so small
            networks need more.
        alpha_lr: learning rate of the architecture parameters.
        alpha_init: standard deviation of their start.
        fixed_meta_state: weights and steps stay as they are in bit-search; false: they are
            trained along (the paper's ablation).
        finetune_epochs: at the chosen bits.
        finetune_lr: learning rate then.
        teacher: also "float": the float network that training starts from.
    """

    frontend: str = "metamix"
    weight_bits: int | tuple[int, ...] = 4
    label_smoothing: float = 0.1
    # Of float pre-training; the other phases start from trained weights.
    warmup: float = 0.2
    weights: str = ""
    float_epochs: int = 8
    float_lr: float = 0.1
    meta_epochs: int = 1
    meta_lr: float = 0.02
    search_epochs: int = 1
    search_lambda: float = 1.0
    alpha_lr: float = 1e-4
    alpha_init: float = 1e-3
    fixed_meta_state: bool = True
    finetune_epochs: int = 5
    finetune_lr: float = 0.04


@dataclass(frozen=True)
class PtqConfig(Config):
    """Post-training quantization: a float network becomes a run without training.

    Args:
        weights: file with the float weights, or a run directory; must be set.
        bits: uniform bits that ``model.safetensors`` is corrected for, such as w8a8.
        presets: further uniform bits that get a correction of their own.
        glue: how grids of residual, pooling and output tensors are found: mse, minmax or
            percentile.
        percentile: share of values, in percent, inside a percentile grid.
        correction: of every layer's output: affine (scale and bias), bias or none.
        calibration_images: training images, the first ones, that grids come from.
        correction_images: the first ones of these, that corrections come from.
        compare_images: test images on which choices of glue are compared; 0 for all.
    """

    frontend: str = "ptq"
    activation_bits: tuple[int, ...] = (8, 6, 4, 3, 2)
    weight_bits: tuple[int, ...] = (8, 6, 4, 3, 2)
    asymmetric: bool = True
    weights: str = ""
    bits: str = "w8a8"
    presets: tuple[str, ...] = ("w8a8", "w6a6", "w4a8", "w4a4")
    glue: str = "mse"
    percentile: float = 99.99
    correction: str = "affine"
    calibration_images: int = 1024
    correction_images: int = 256
    compare_images: int = 1000


@dataclass(frozen=True)
class QatConfig(TrainConfig):
    """Quantization-aware training at fixed bits; `activation_bits`, `weight_bits` stay empty.

    Args:
        bits: such as w4a4, with `first_last_bits` in the first and the last layer; a list such
            as w4a4,layer3.*=w4a8; or the path of a bits file, which names every layer or has
            a default (docs/bits.md).
        weights: float weights to start from, a file or a run directory; empty for none.
        float_epochs: of float training first, where there are no `weights`.
        float_lr: learning rate then.
        epochs: at the bits.
        lr: learning rate then, of the weights.
        teacher: also "float": the float network that training starts from.
        calibration_images: training images, the first ones, that activation grids start from.
    """

    frontend: str = "qat"
    activation_bits: tuple[int, ...] = ()
    weight_bits: int | tuple[int, ...] = ()
    bits: str = "w4a4"
    weights: str = ""
    float_epochs: int = 0
    float_lr: float = 0.1
    epochs: int = 10
    lr: float = 0.01
    calibration_images: int = 512


CONFIGS: dict[str, type[Config]] = {
    "metamix": MetaMixConfig,
    "ptq": PtqConfig,
    "qat": QatConfig,
}

ConfigT = TypeVar("ConfigT", bound=Config)


def override(config: ConfigT, settings: Sequence[str]) -> ConfigT:
    """Return `config` with ``key=value`` settings applied.

    Raises:
        UserError: unknown key (with the nearest ones), or a value of the wrong type or range.
    """
    types = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UserError(f"--set {setting!r}: expected key=value")
        if key not in types:
            raise unknown_name("recipe setting", key, types)
        changes[key] = _parse(key, text, types[key], getattr(config, key))
    changed = dataclasses.replace(config, **changes)
    _require_ranges(changed)
    return changed


def _parse(key: str, text: str, kind: Any, old: Any) -> Any:
    """Parse `text` as a value of type `kind`; `old` is an example of one."""
    items = get_args(kind)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if items:
            return tuple(items[0](part) for part in text.split(",") if part)
        return kind(text)
    except (ValueError, KeyError):
        wanted = f"comma-separated {items[0].__name__}s" if items else kind.__name__
        example = f", such as {_show(old)}" if old or not items else ""
        raise UserError(f"--set {key}={text}: expected {wanted}{example}") from None


def _show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _require_ranges(config: Config) -> None:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name, lowest, highest in _RANGES:
        for value in _items(values.get(name, ())):
            floating = name == "first_last_bits" and value in FLOAT_WIDTHS
            if not lowest <= value <= highest and not floating:
                raise UserError(
                    f"recipe setting {name}: got {value}, expected {lowest:g} to {highest:g}"
                )
    for name, known in _CHOICES.items():
        if name in values and values[name] not in known:
            raise unknown_name(f"recipe setting {name}", values[name], known)
    for name in ("bits", "presets") if isinstance(config, PtqConfig) else ():
        for value in _items(values.get(name, ())):
            if parse_uniform(value) is None:
                raise UserError(f"recipe setting {name}: got {value!r}, expected such as w4a8")
    if len(config.mean) != len(config.std):
        raise UserError(
            f"recipe settings mean and std: got {len(config.mean)} and {len(config.std)} "
            "values, expected one each per channel"
        )
    parse_augment(values.get("augment", ()))


def _items(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


_MANY = 10**9
_RANGES = (
    ("workers", 0, 256), ("image_size", 0, 4096),
    ("activation_bits", ACTIVATION_BITS.start, ACTIVATION_BITS.stop - 1),
    ("weight_bits", WEIGHT_BITS.start, WEIGHT_BITS.stop - 1),
    ("first_last_bits", WEIGHT_BITS.start, WEIGHT_BITS.stop - 1),
    ("glue_bits", ACTIVATION_BITS.start, ACTIVATION_BITS.stop - 1),
    ("batch_size", 1, _MANY), ("train_images", 0, _MANY), ("norm_batches", 1, _MANY),
    ("float_epochs", 0, _MANY), ("meta_epochs", 0, _MANY), ("search_epochs", 0, _MANY),
    ("finetune_epochs", 0, _MANY), ("epochs", 0, _MANY), ("calibration_images", 1, _MANY),
    ("percentile", 50, 100), ("correction_images", 1, _MANY), ("compare_images", 0, _MANY),
    ("mean", -math.inf, math.inf), ("std", 1e-6, 1e6), ("workers", 0, 256),
    ("label_smoothing", 0, 1), ("momentum", 0, 1), ("weight_decay", 0, _MANY),
    ("alpha_weight_decay", 0, _MANY), ("step_lr_factor", 0, _MANY), ("clip_norm", 0, _MANY),
    ("accumulate", 1, _MANY), ("ema", 0, 1), ("warmup", 0, 1), ("milestones", 0, 1),
    ("gamma", 0, _MANY), ("distill_weight", 0, 1), ("temperature", 1e-3, _MANY),
    ("checkpoint_minutes", 0, _MANY), ("checkpoint_steps", 0, _MANY),
    ("image_size", 0, 4096), ("frames", 0, 256),
)  # fmt: skip
_CHOICES: dict[str, Collection[str]] = {
    "quantizer": QUANTIZERS,
    "weight_quantizer": ("", *QUANTIZERS),
    "activation_quantizer": ("", *QUANTIZERS),
    "glue": ("mse", "minmax", "percentile"),
    "correction": ("affine", "bias", "none"),
    "optimizer": ("sgd", "adam", "adamw"),
    "schedule": ("cosine", "multistep"),
    "device": ("auto", "cpu", "cuda"),
}


def to_json(config: Config) -> dict[str, Any]:
    """Return the fields as a JSON object."""
    value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return value


def from_json(value: dict[str, Any], where: str) -> Config:
    """Return the config saved by `to_json`, as its frontend's class.

    Raises:
        UserError: unknown frontend, unknown or missing fields.
    """
    frontend = value.get("frontend", "metamix")
    if frontend not in CONFIGS:
        raise UserError(f"{where}: unknown frontend {frontend!r}: made by a newer qtool?")
    kind = CONFIGS[frontend]
    known = {f.name for f in dataclasses.fields(kind)}
    value = _renewed(value)
    if unknown := sorted(set(value) - known):
        raise UserError(
            f"{where}: unknown recipe settings {', '.join(unknown)}: made by a newer qtool?"
        )
    try:
        fixed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return kind(**fixed)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None


def _renewed(value: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of an earlier version in the settings of this one."""
    if "flip" not in value:
        return value
    augment = ["flip"] if value["flip"] else []
    return {key: v for key, v in value.items() if key != "flip"} | {"augment": augment}


def config_as(config: Config, kind: type[ConfigT], what: str) -> ConfigT:
    """Return `config` if it is a `kind`; `what` needs one."""
    if not isinstance(config, kind):
        raise UserError(
            f"{what}: recipe {config.name} belongs to frontend {config.frontend}, not to "
            f"{', '.join(name for name, known in CONFIGS.items() if issubclass(known, kind))}"
        )
    return config
