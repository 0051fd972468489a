"""Recipes are frozen dataclasses; ``--set key=value`` overrides a field, type-checked."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from qtool.errors import UserError, unknown_name
from qtool.qspec import ACTIVATION_BITS, WEIGHT_BITS


@dataclass(frozen=True)
class MetaMixConfig:
    """MetaMix (arXiv 2311.06798): what its phases do, in order.

    Epochs: `float_epochs` of float pre-training, `meta_epochs` of bit-meta, `search_epochs` of
    bit-meta and bit-search in turn, `finetune_epochs` at the chosen bits (paper, Table 1).
    """

    name: str
    model: str
    dataset: str
    frontend: str = "metamix"
    activation_bits: tuple[int, ...] = (8, 4, 3)
    weight_bits: int = 4
    first_last_bits: int = 8
    glue_bits: int = 8
    batch_size: int = 128
    flip: bool = True
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
    train_images: int = 0
    seed: int = 0


ConfigT = TypeVar("ConfigT")


def override(config: ConfigT, settings: Sequence[str]) -> ConfigT:
    """Return `config` with ``key=value`` settings applied.

    Raises:
        UserError: unknown key (with the nearest ones), or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UserError(f"--set {setting!r}: expected key=value")
        if key not in fields:
            raise unknown_name("recipe setting", key, fields)
        changes[key] = _parse(key, text, getattr(config, key))
    return _replace(config, changes)


def _parse(key: str, text: str, old: Any) -> Any:
    """Parse `text` as a value of the type that `old` has."""
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(old, tuple):
            return tuple(int(part) for part in text.split(","))
        return type(old)(text)
    except (ValueError, KeyError):
        kind = "comma-separated ints" if isinstance(old, tuple) else type(old).__name__
        raise UserError(f"--set {key}={text}: expected {kind}, such as {_show(old)}") from None


def _show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _replace(config: ConfigT, changes: dict[str, Any]) -> ConfigT:
    new: Any = dataclasses.replace(config, **changes)  # type: ignore[type-var]
    for name, lowest, highest in _RANGES:
        got = getattr(new, name)
        for value in got if isinstance(got, tuple) else (got,):
            if not lowest <= value <= highest:
                raise UserError(
                    f"recipe setting {name}: got {value}, expected {lowest} to {highest}"
                )
    return new  # type: ignore[no-any-return]


_MANY = 10**9
_RANGES = (
    ("activation_bits", ACTIVATION_BITS.start, ACTIVATION_BITS.stop - 1),
    ("weight_bits", WEIGHT_BITS.start, WEIGHT_BITS.stop - 1),
    ("first_last_bits", WEIGHT_BITS.start, WEIGHT_BITS.stop - 1),
    ("glue_bits", ACTIVATION_BITS.start, ACTIVATION_BITS.stop - 1),
    ("batch_size", 1, _MANY), ("train_images", 0, _MANY), ("norm_batches", 1, _MANY),
    ("float_epochs", 0, _MANY), ("meta_epochs", 0, _MANY), ("search_epochs", 0, _MANY),
    ("finetune_epochs", 0, _MANY),
)  # fmt: skip


def to_json(config: Any) -> dict[str, Any]:
    """Return the fields as a JSON object."""
    value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return value


def from_json(value: dict[str, Any], where: str) -> MetaMixConfig:
    """Return the config saved by `to_json`; unknown or missing fields are a `UserError`."""
    known = {f.name for f in dataclasses.fields(MetaMixConfig)}
    if unknown := sorted(set(value) - known):
        raise UserError(
            f"{where}: unknown recipe settings {', '.join(unknown)}: made by a newer qtool?"
        )
    try:
        fixed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return MetaMixConfig(**fixed)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None
