"""``key=value`` settings: parsed by type, held to their ranges."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any, get_args, get_type_hints

from qtool.core.errors import UserError, unknown_name
from qtool.core.grids import ACTIVATION_BITS, FLOAT_WIDTHS, WEIGHT_BITS
from qtool.core.selection import parse_uniform
from qtool.data.augment import parse_augment
from qtool.quantizers import QUANTIZERS
from qtool.settings.base import Config, ConfigT
from qtool.settings.ptq import PtqConfig

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
