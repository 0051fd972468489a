"""As much of JSON Schema as docs/bits.schema.json uses; an unknown keyword is an error."""

import re
from typing import Any

_IGNORED = {"$schema", "$defs", "title", "description"}
_TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int,
    "number": (int, float),
}  # fmt: skip


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Say whether `value` is what `schema`, a part of `root`, describes."""
    return all(
        _KEYWORDS[keyword](value, argument, root, schema)
        for keyword, argument in schema.items()
        if keyword not in _IGNORED
    )


def _reference(value: Any, path: str, root: dict[str, Any], _: Any) -> bool:
    found: Any = root
    for part in path.removeprefix("#/").split("/"):
        found = found[part]
    return fits(value, found, root)


def _others(value: Any, argument: Any, root: dict[str, Any], schema: dict[str, Any]) -> bool:
    known = schema.get("properties", {})
    return all(fits(value[key], argument, root) for key in value if key not in known)


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or value is not True)  # type: ignore[arg-type]


_KEYWORDS = {
    "$ref": _reference,
    "type": lambda value, kind, *_: _is(value, kind),
    "const": lambda value, wanted, *_: value == wanted,
    "enum": lambda value, known, *_: value in known,
    "required": lambda value, keys, *_: all(key in value for key in keys),
    "anyOf": lambda value, any_of, root, _: any(fits(value, one, root) for one in any_of),
    "properties": lambda value, known, root, _: all(
        fits(value[key], known[key], root) for key in known if key in value
    ),
    "additionalProperties": _others,
    "items": lambda value, each, root, _: all(fits(item, each, root) for item in value),
    "prefixItems": lambda value, each, root, _: all(
        fits(item, one, root) for item, one in zip(value, each, strict=False)
    ),
    "minItems": lambda value, least, *_: len(value) >= least,
    "maxItems": lambda value, most, *_: len(value) <= most,
    "minimum": lambda value, least, *_: value >= least,
    "exclusiveMinimum": lambda value, below, *_: value > below,
    "pattern": lambda value, pattern, *_: re.search(pattern, value) is not None,
}
