"""Frozen dataclasses to JSON values and back: nested records, tuples, mappings by name.

A field whose default is None is left out of the JSON where it is None.
"""

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Return a record, or a tuple, mapping or plain value of records, as JSON values."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: to_json(part)
            for field in dataclasses.fields(value)
            if (part := getattr(value, field.name)) is not None or field.default is not None
        }
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    return value


def from_json(kind: type[T], value: Any) -> T:
    """Return the record that `to_json` made `value` of.

    Args:
        kind: a dataclass, ``tuple[X, ...]``, ``tuple[X, Y]``, ``Mapping[str, X]``, any of
            these ``| None``, or a plain type.
        value: JSON values; entries that `kind` does not have are left out.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: `value` is no such record.
    """
    found: T = _read(kind, value)
    return found


def _read(kind: Any, value: Any) -> Any:
    inner = get_args(kind)
    if NoneType in inner:
        (kind,) = (part for part in inner if part is not NoneType)
        return None if value is None else _read(kind, value)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value)
    if get_origin(kind) is tuple:
        parts = inner[:1] * len(value) if ... in inner else inner
        return tuple(_read(part, item) for part, item in zip(parts, value, strict=True))
    if get_origin(kind) is Mapping:
        return {key: _read(inner[1], part) for key, part in value.items()}
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted):
        raise TypeError(f"got {value!r}, expected {kind.__name__}")
    return value


def _record(kind: Any, value: Mapping[str, Any]) -> Any:
    hints, parts = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in value or field.default is dataclasses.MISSING:
            parts[field.name] = _read(hints[field.name], value[field.name])
    return kind(**parts)
