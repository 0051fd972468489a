"""A sealed shared library: native code, then metadata, then a checksum of both.

    library | JSON | its length, 8 bytes little endian | SHA-256 of all before | b"QTOOLSO1"

The JSON is `passes.emit.facts.describe` of the program, and of the module: "batch", "tvm",
"cpu" (`passes.emit.tvm.cpu_target.CpuTarget`) and "module"
(`passes.emit.tvm.cpu.tvm_module.TvmModule.facts`).

Dynamic loaders ignore what follows the library. The seal is read before anything is loaded: a
truncated library would not fail politely, it kills the process with SIGBUS.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtool.core.errors import UserError

MAGIC = b"QTOOLSO1"
_DIGEST = 32
_TAIL = 8 + _DIGEST + len(MAGIC)


def seal(library: bytes, metadata: Mapping[str, Any]) -> bytes:
    """Return `library` with `metadata` and checksum behind it."""
    text = json.dumps(dict(metadata)).encode()
    body = library + text + len(text).to_bytes(8, "little")
    return body + hashlib.sha256(body).digest() + MAGIC


def unseal(data: bytes, name: str) -> tuple[bytes, dict[str, Any]]:
    """Return the library and the metadata of what `seal` made.

    Args:
        data: a whole sealed library.
        name: what errors call it.

    Raises:
        UserError: not written by qtool, truncated or altered.
    """
    if len(data) < _TAIL or not data.endswith(MAGIC):
        raise UserError(f"{name}: not a TVM module written by qtool, or truncated")
    body, digest = data[: -_DIGEST - len(MAGIC)], data[-_DIGEST - len(MAGIC) : -len(MAGIC)]
    if hashlib.sha256(body).digest() != digest:
        raise UserError(f"{name}: its checksum does not fit its content: damaged")
    length = int.from_bytes(body[-8:], "little")
    try:
        metadata = json.loads(body[-8 - length : -8])
    except ValueError:
        raise UserError(f"{name}: its metadata is not JSON: not written by qtool") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{name}: its metadata is no JSON object: not written by qtool")
    return body[: -8 - length], metadata


def read_seal(path: Path) -> dict[str, Any]:
    """Return the metadata of a sealed library.

    Raises:
        UserError: missing, not written by qtool, truncated or altered; or written by a
            version that did not say which CPU the code is for.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"model {path} does not exist") from None
    _, metadata = unseal(data, f"model {path}")
    if not (
        isinstance(metadata.get("cpu"), dict) and isinstance(metadata.get("module"), dict)
    ):
        raise UserError(
            f"model {path}: written by qtool {metadata.get('qtool', 'of another version')}, "
            "which did not say what CPU it compiled for; export it again"
        )
    return metadata
