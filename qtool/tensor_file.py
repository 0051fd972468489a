"""Tensors on disk: safetensors with a checksum of everything in them; nothing is unpickled.

The metadata has one entry, ``qtool``, a JSON object. Its "digest" is BLAKE2b of the object
without it, and of every tensor's name, dtype, shape and bytes. Files of earlier versions have
none, and are read unchecked.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.core.errors import UserError
from qtool.core.files import atomic_path, no_room

if TYPE_CHECKING:  # exporting a run again needs no torch
    from torch import Tensor

# safetensors writes its metadata in random order: one entry keeps files reproducible.
MARK = "qtool"
_DIGEST = "digest"
_BEFORE_DIGESTS = {"format", "stage", "phase", "epochs_done"}


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], mark: Mapping[str, Any]) -> None:
    """Write `tensors` and the JSON object `mark` to `path`, whole or not at all.

    Raises:
        UserError: no room; a file that was there is still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = _apart(tensors)
    content = json.dumps({**mark, _DIGEST: _digest(plain, mark)})
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, {MARK: content})
            _settle(temporary)
        except SafetensorError as error:
            raise no_room(path, _reason(error)) from None


def load_tensors(path: Path, advice: str = "") -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Return the tensors in `path`, and its mark.

    Args:
        path: a file of `save_tensors`.
        advice: what to do about a damaged one, for the error.

    Raises:
        UserError: truncated, altered, or not written by qtool.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    # A damaged header can lead anywhere.
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        reason = f"truncated or damaged: {_reason(error)}"
        raise UserError(f"checkpoint {path} is {reason}{advice}") from None
    if set(metadata) != {MARK}:
        raise UserError(
            f"checkpoint {path} was not written by qtool; nothing was loaded{advice}"
        )
    try:
        mark = dict(json.loads(metadata[MARK]))
    except (ValueError, TypeError):
        mark = {"": "no JSON object"}
    digest = mark.pop(_DIGEST, None)
    is_old = digest is None and set(mark) <= _BEFORE_DIGESTS
    if not is_old and digest != _digest(tensors, mark):
        raise UserError(
            f"checkpoint {path} is damaged: its checksum does not fit its content{advice}"
        )
    return tensors, mark


def read_mark(path: Path) -> dict[str, Any]:
    """Return the mark of `path` alone, which needs no torch and is not checked.

    Raises:
        UserError: no such file, damaged, or not written by qtool.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(json.loads((file.metadata() or {})[MARK]))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"checkpoint {path} is truncated or damaged: {_reason(error)}"
        ) from None


def _apart(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Return plain tensors of which no two share memory: the format has no word for that."""
    plain, seen = {}, set()
    for name, tensor in tensors.items():
        found = tensor.detach().cpu().contiguous()
        place = found.untyped_storage().data_ptr()
        plain[name] = found.clone() if place in seen else found
        seen.add(place)
    return plain


def _digest(tensors: Mapping[str, "Tensor"], mark: Mapping[str, Any]) -> str:
    import torch

    found = hashlib.blake2b(json.dumps(mark, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _settle(path: Path) -> None:
    """Wait until the content of `path` is on the disk: the name must not get there first."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or " ".join(str(error).split())
