"""A sealed shared library: native code, then metadata, then a checksum of both.

    library | JSON | its length, 8 bytes little endian | SHA-256 of all before | b"QTOOLSO1"

The JSON is `passes.emit.facts.describe` of the program, and of the module: "batch", "tvm",
"cpu" (`passes.emit.tvm.cpu_target.CpuTarget`), "module"
(`passes.emit.tvm.cpu.tvm_module.TvmModule.facts`), and "device" where kernels run on a GPU
(`passes.emit.tvm.cuda.gpu_target.GpuTarget`). A library of one network at several pairs of
bit-widths says the program's and "module" under "pairs", by the pairs' names.

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
_PAIRS = "pairs"


def function_names(pair: str | None = None) -> tuple[str, str]:
    """Return the functions of a library: image -> output, and image -> every tensor.

    Args:
        pair: of a library of several, such as ``w4a8``; None: there is one network in it.
    """
    return ("main", "trace") if pair is None else (pair, f"trace_{pair}")


def networks_of(metadata: Mapping[str, Any]) -> dict[str | None, dict[str, Any]]:
    """Return what a library says of every network, by pair; None is the name of a single."""
    common = {name: value for name, value in metadata.items() if name != _PAIRS}
    if _PAIRS not in metadata:
        return {None: common}
    return {name: common | facts for name, facts in metadata[_PAIRS].items()}


def network_facts(metadata: Mapping[str, Any], pair: str | None, name: str) -> dict[str, Any]:
    """Return what a library says of its network at `pair`, or of the only one.

    Args:
        metadata: of `read_seal`.
        pair: which of several; None for the only network.
        name: what errors call the library.

    Raises:
        UserError: a pair that it does not have, or none of several.
    """
    known = networks_of(metadata)
    if pair in known:
        return known[pair]
    if None in known:
        raise UserError(f"{name} holds a single network, not one called {pair}")
    what = "several pairs, name one" if pair is None else f"no pair {pair}"
    raise UserError(f"{name} holds {what}: there are {', '.join(map(str, known))}")


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
    networks = metadata.get(_PAIRS, {None: metadata})
    if not (
        isinstance(metadata.get("cpu"), dict)
        and isinstance(networks, dict)
        and networks
        and all(
            isinstance(facts, dict) and isinstance(facts.get("module"), dict)
            for facts in networks.values()
        )
    ):
        raise UserError(
            f"model {path}: written by qtool {metadata.get('qtool', 'of another version')}, "
            "which did not say what CPU it compiled for; export it again"
        )
    return metadata
