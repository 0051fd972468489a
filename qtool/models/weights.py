"""Weights files made elsewhere -> a state dict, and a state dict -> a model, strictly.

Reads ``.safetensors``, and what ``torch.save`` wrote (``.pt``, ``.pth``, ``.th``) with
``weights_only=True``: a pickle that holds more than tensors and plain containers is refused,
and nothing of it runs. A checkpoint's ``state_dict`` or ``model`` entry is unwrapped, and the
``module.`` that DataParallel puts before every name is dropped.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from qtool.core.errors import UserError
from qtool.tensor_file import MARK, load_tensors

_PICKLES = (".pt", ".pth", ".th")
_WRAPPERS = ("state_dict", "model")
_PREFIX = "module."
# BatchNorm's counter is younger than many published weights, and inference does not read it.
_OPTIONAL = "num_batches_tracked"
_NAMED = 3


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in `path` by name, on the CPU.

    Raises:
        UserError: missing, truncated, refused or unknown kind of file; no tensors in it.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: no such file")
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    elif path.suffix in _PICKLES:
        content = _read_pickle(path)
    else:
        expected = ", ".join((".safetensors", *_PICKLES))
        raise UserError(f"weights {path}: unknown kind of file, expected {expected}")
    return _without_prefix(_state_dict(content, path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            is_own = MARK in (file.metadata() or {})
        return load_tensors(path)[0] if is_own else load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights {path} is truncated or damaged: {error}") from None


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever the bytes lead to
        text = " ".join(str(error).split())
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in text:
            raise UserError(
                f"weights {path} refused: it holds Python objects besides tensors; none was "
                "run: save model.state_dict() alone, or as .safetensors"
            ) from None
        kind = type(error).__name__
        raise UserError(f"weights {path} is truncated or damaged: {kind}") from None


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Unwrap checkpoints until only names and tensors are left."""
    while isinstance(content, Mapping):
        inner = [content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"weights {path}: got a {kind}, expected a dict of tensors")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            kind = type(value).__name__
            raise UserError(f"weights {path}: {name!r} is a {kind}, expected a tensor")
    if not content:
        raise UserError(f"weights {path}: no tensors in it")
    return dict(content)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(name.startswith(_PREFIX) for name in state):
        return state
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}


def fit_state(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load `state` into `model`: every tensor, and no other (BatchNorm's counters may lack).

    Args:
        model: is left as it was when `state` does not fit.
        state: tensors by name.
        where: what the error names, such as the path.

    Raises:
        UserError: names that are missing, unexpected, or have another shape.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith(_OPTIONAL)]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    faults = [
        _fault(kind, names)
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if faults:
        raise UserError(f"{where} does not fit {type(model).__name__}: {'; '.join(faults)}")
    model.load_state_dict({**own, **state})


def _fault(kind: str, names: list[str]) -> str:
    more = "" if len(names) <= _NAMED else f" and {len(names) - _NAMED} more"
    return f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{more})"
