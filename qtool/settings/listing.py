"""The settings of a recipe in words: what ``qtool list settings RECIPE`` prints."""

from dataclasses import dataclass, fields

from qtool.settings.base import Config
from qtool.settings.setting import setting_of, written


@dataclass(frozen=True)
class Row:
    """One setting.

    Args:
        name: as ``--set NAME=VALUE`` has it.
        value: the recipe's.
        range: the values it takes; empty: any of its type.
        meaning: one line.
    """

    name: str
    value: str
    range: str
    meaning: str


def rows_of(config: Config) -> list[Row]:
    """Return a row for every setting, in the order of its class."""
    return [_row(config, field.name) for field in fields(config)]


def _row(config: Config, name: str) -> Row:
    says, value = setting_of(type(config), name), getattr(config, name)
    values = "true, false" if isinstance(value, bool) else says.range
    return Row(name, written(value), values, says.meaning)
