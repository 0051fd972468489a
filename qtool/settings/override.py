"""``key=value`` settings: parsed by type, held to what their fields say (`setting`)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from qtool.core.errors import UserError, unknown_name
from qtool.settings.base import Config, ConfigT
from qtool.settings.setting import setting_of, written


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
    changed = dataclasses.replace(config, **changes).settled(config, changes)
    require_valid(changed)
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
        example = f", such as {written(old)}" if old or not items else ""
        raise UserError(f"--set {key}={text}: expected {wanted}{example}") from None


def require_valid(config: Config) -> None:
    """Refuse values that their settings do not take, or that contradict each other."""
    for field in dataclasses.fields(config):
        setting_of(type(config), field.name).require(field.name, getattr(config, field.name))
    config.require_consistent()
