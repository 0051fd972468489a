"""Constants that several ONNX files hold, in one file beside them (ONNX's external data).

A model whose tensors are there says in its metadata, under `SHARED_KEY`, as JSON: ``file``, a
plain name, ``bytes`` and ``sha256`` of that file. `join` follows no other reference: neither
to another folder nor to another file, and not beyond the end.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from qtool.core.errors import UserError

SHARED_KEY = "qtool.shared"
# What vector loads like best.
_ALIGNMENT = 64
_KEYS = ("location", "offset", "length")


def split(models: Collection[onnx.ModelProto], file: str) -> bytes:
    """Move constants that several of `models` hold out of them.

    Args:
        models: changed in place.
        file: name of the file that is to lie beside them.

    Returns:
        The file's content. Constants so small that saying where they are takes more room stay
        in the models.
    """
    holders = Counter(
        data for model in models for data in {t.raw_data for t in model.graph.initializer}
    )
    places: dict[bytes, int] = {}
    content = bytearray()
    for model in models:
        for tensor in model.graph.initializer:
            data = tensor.raw_data
            if not _is_worth_it(data, holders[data], file):
                continue
            if data not in places:
                content.extend(bytes(-len(content) % _ALIGNMENT))
                places[data] = len(content)
                content.extend(data)
            _refer(tensor, file, places[data])
    facts = json.dumps(facts_of(file, bytes(content)), separators=(",", ":"))
    for model in models:
        model.metadata_props.add(key=SHARED_KEY, value=facts)
    return bytes(content)


def facts_of(file: str, content: bytes) -> dict[str, Any]:
    """Return what models say of the file, as JSON values."""
    digest = hashlib.sha256(content).hexdigest()
    return {"file": file, "bytes": len(content), "sha256": digest}


def _is_worth_it(data: bytes, holders: int, file: str) -> bool:
    """True where the files together are smaller with `data` outside."""
    inside, outside = TensorProto(raw_data=data), TensorProto()
    # With all the digits that an offset may have.
    _refer(outside, file, 10**9)
    spared = inside.ByteSize() - outside.ByteSize()
    return holders > 1 and holders * spared > len(data) + _ALIGNMENT


def _refer(tensor: TensorProto, file: str, offset: int) -> None:
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in zip(_KEYS, (file, offset, length), strict=True):
        tensor.external_data.add(key=key, value=str(value))


def join(model: onnx.ModelProto, folder: Path) -> None:
    """Put what `split` moved out of `model` back into it.

    Args:
        model: changed in place. Of one that does not name a shared file nothing is.
        folder: that it was read from.

    Raises:
        UserError: a file that is missing, another one or damaged, or a tensor elsewhere.
    """
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    file = shared_file(metadata)
    if file is None:
        return
    content = _read(folder / file, _facts(metadata[SHARED_KEY]))
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            start, length = _place_of(tensor, file, len(content))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = content[start : start + length]


def shared_file(metadata: Mapping[str, str]) -> str | None:
    """Return the name of the file that a model shares constants in, None where it does not.

    Args:
        metadata: the model's.

    Raises:
        UserError: it is no plain name.
    """
    if SHARED_KEY not in metadata:
        return None
    file: str = _facts(metadata[SHARED_KEY])["file"]
    if file in ("", ".", "..") or Path(file).name != file or "\\" in file or "\0" in file:
        raise UserError(f"its shared file {file!r} is no plain name of a file beside it")
    return file


def _facts(text: str) -> dict[str, Any]:
    """Return what the metadata say of the shared file."""
    try:
        facts = json.loads(text)
        if (
            isinstance(facts, dict)
            and isinstance(facts.get("file"), str)
            and type(facts.get("bytes")) is int
            and isinstance(facts.get("sha256"), str)
        ):
            return facts
    except (ValueError, RecursionError):
        pass
    raise UserError(f"its {SHARED_KEY} metadata is damaged: {text[:60]!r}")


def _read(path: Path, facts: dict[str, Any]) -> bytes:
    """Return the content of the shared file, which must be the one written with the model."""
    if path.is_symlink():
        raise UserError(f"its weights are in {path}, a link; put the file itself there")
    if not path.is_file():
        raise UserError(
            f"its weights are in {path}, and there is no such file; keep both in one folder"
        )
    content = path.read_bytes()
    found = facts_of(facts["file"], content)
    if found["sha256"] != facts["sha256"]:
        raise UserError(
            f"its weights are in {path}, which is damaged or of another export: "
            f"{len(content):,} bytes with SHA-256 {found['sha256'][:12]}..., expected "
            f"{facts['bytes']:,} with {facts['sha256'][:12]}..."
        )
    return content


def _place_of(tensor: TensorProto, file: str, size: int) -> tuple[int, int]:
    """Return where a tensor's data begin in the shared file, and how many bytes they are."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        start, length = int(entries["offset"]), int(entries["length"])
    except (KeyError, ValueError):
        start = length = -1
    if entries.keys() != set(_KEYS) or entries["location"] != file:
        raise UserError(f"tensor {tensor.name} is stored elsewhere than in {file}")
    if start < 0 or length < 0 or start + length > size:
        raise UserError(f"tensor {tensor.name} is stored beyond the {size:,} bytes of {file}")
    return start, length
