"""A sealed shared library: native code, then metadata, then a checksum of both.

    library | JSON | its length, 8 bytes little endian | SHA-256 of all before | b"QTOOLSO1"

Dynamic loaders ignore what follows the library. The seal is read before anything is loaded: a
truncated library would not fail politely, it kills the process with SIGBUS.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtool.errors import UserError

MAGIC = b"QTOOLSO1"
_DIGEST = 32
_TAIL = 8 + _DIGEST + len(MAGIC)


def seal(library: bytes, metadata: Mapping[str, Any]) -> bytes:
    """Return `library` with `metadata` and checksum behind it."""
    text = json.dumps(dict(metadata)).encode()
    body = library + text + len(text).to_bytes(8, "little")
    return body + hashlib.sha256(body).digest() + MAGIC


def read_seal(path: Path) -> dict[str, Any]:
    """Return the metadata of a sealed library.

    Raises:
        UserError: missing, not written by qtool, truncated or altered.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"model {path} does not exist") from None
    if len(data) < _TAIL or not data.endswith(MAGIC):
        raise UserError(f"model {path}: not a TVM module written by qtool, or truncated")
    body, digest = data[: -_DIGEST - len(MAGIC)], data[-_DIGEST - len(MAGIC) : -len(MAGIC)]
    if hashlib.sha256(body).digest() != digest:
        raise UserError(f"model {path}: its checksum does not fit its content: damaged")
    length = int.from_bytes(body[-8:], "little")
    metadata: dict[str, Any] = json.loads(body[-8 - length : -8])
    return metadata
