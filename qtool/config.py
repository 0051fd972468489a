"""Recipes are frozen dataclasses; ``--set key=value`` overrides a field, type-checked.

Every frontend has a class of its own, `CONFIGS` says which; what the run directory, the export
and the check read is in their common base.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from qtool.data.augment import parse_augment
from qtool.errors import UserError, unknown_name
from qtool.qspec import ACTIVATION_BITS, WEIGHT_BITS, parse_uniform


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
        first_last_bits: weights and inputs of the first and the last layer.
        glue_bits: residual, pooling and output tensors.
        mean, std: per channel: the network sees (pixel / 255 - mean) / std; empty: as it is.
        asymmetric: signed activations have zero points that fit their range.
        batch_size: images at a time.
        train_images: training images that are used, the first ones; 0 for all.
        image_size: side of images that are files, in pixels; 0: usual of the data set.
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
    batch_size: int = 128
    train_images: int = 0
    image_size: int = 0
    seed: int = 0


@dataclass(frozen=True)
class MetaMixConfig(Config):
    """MetaMix (arXiv 2311.06798): what its phases do, in order.

    Epochs: `float_epochs` of float pre-training, `meta_epochs` of bit-meta, `search_epochs` of
    bit-meta and bit-search in turn, `finetune_epochs` at the chosen bits (paper, Table 1).
    """

    frontend: str = "metamix"
    weight_bits: int = 4
    # Of training images: `qtool.data.augment`; processes that decode and augment, 0: none.
    augment: tuple[str, ...] = ("flip",)
    workers: int = 0
    label_smoothing: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    float_epochs: int = 8
    float_lr: float = 0.1
    meta_epochs: int = 1
    meta_lr: float = 0.02
    search_epochs: int = 1
    # lambda of Eq. 3, per GBOP: the paper's 1 belongs to 5.3 GBOPs, so small nets need more.
    search_lambda: float = 1.0
    alpha_lr: float = 1e-4
    alpha_init: float = 1e-3
    finetune_epochs: int = 5
    finetune_lr: float = 0.04
    # Learning rate of the quantizers' steps, relative to the weights'.
    step_lr_factor: float = 0.1
    # Batches whose statistics replace BatchNorm's running averages after each phase.
    norm_batches: int = 40


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


CONFIGS: dict[str, type[Config]] = {"metamix": MetaMixConfig, "ptq": PtqConfig}

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
            if not lowest <= value <= highest:
                raise UserError(
                    f"recipe setting {name}: got {value}, expected {lowest:g} to {highest:g}"
                )
    for name, known in _CHOICES.items():
        if name in values and values[name] not in known:
            raise unknown_name(f"recipe setting {name}", values[name], known)
    for name in ("bits", "presets"):
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
    ("finetune_epochs", 0, _MANY), ("calibration_images", 1, _MANY), ("percentile", 50, 100),
    ("correction_images", 1, _MANY), ("compare_images", 0, _MANY),
    ("mean", -math.inf, math.inf), ("std", 1e-6, 1e6),
)  # fmt: skip
_CHOICES = {
    "glue": ("mse", "minmax", "percentile"),
    "correction": ("affine", "bias", "none"),
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


def config_as(config: Config, kind: type[ConfigT], what: str) -> ConfigT:
    """Return `config` if it is a `kind`; `what` needs one."""
    if not isinstance(config, kind):
        raise UserError(
            f"{what}: recipe {config.name} belongs to frontend {config.frontend}, not to "
            f"{', '.join(name for name, known in CONFIGS.items() if known is kind)}"
        )
    return config
