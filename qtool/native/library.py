"""The functions of ``kernels.cpp`` as Python calls on torch tensors."""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qtool.core.errors import UserError
from qtool.native.compiler import NoCompiler, compiled

SOURCE = Path(__file__).parent / "kernels.cpp"
_POINTER, _COUNT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_WEIGHT = ctypes.c_double
# Grid: codes below and above 0, ceiling, whether negative values become 0 first.
_GRID = (_INT, _INT, ctypes.c_float, _INT)
_SIZE = (_COUNT, _COUNT)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "qtool_quantize": (_POINTER, _POINTER, *_SIZE, _POINTER, *_GRID, _INT),
    "qtool_quantize_backward": (
        *(_POINTER,) * 3, *_SIZE, _POINTER, *_GRID, _INT, _WEIGHT, _POINTER, _POINTER, _INT,
    ),
    "qtool_pack": (_POINTER, _POINTER, _COUNT, _POINTER, _INT, _INT),
    "qtool_unpack": (_POINTER, _POINTER, _COUNT, _POINTER, _INT, _INT),
    "qtool_norm_quantize": (_POINTER, _POINTER, *_SIZE, *(_POINTER,) * 3, *_GRID, _INT),
    "qtool_norm_quantize_backward": (
        *(_POINTER,) * 3, *_SIZE, *(_POINTER,) * 4, *_GRID, _INT, _WEIGHT, *(_POINTER,) * 3,
        _INT,
    ),
    "qtool_norm_input_gradient": (_POINTER, _POINTER, *_SIZE, *(_POINTER,) * 4, _INT),
}  # fmt: skip
_SCRATCH = ("qtool_quantize_scratch", "qtool_norm_scratch")


@dataclass(frozen=True)
class Availability:
    """The loaded library, or why there is none."""

    library: ctypes.CDLL | None
    reason: str


@functools.cache
def availability() -> Availability:
    """Compile and load the kernels, once a process."""
    try:
        library = ctypes.CDLL(str(compiled(SOURCE)))
    except (NoCompiler, UserError, OSError) as error:
        return Availability(None, str(error))
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    for name in _SCRATCH:
        function = getattr(library, name)
        function.argtypes, function.restype = _SIZE, _COUNT
    return Availability(library, "")


def call(name: str, *arguments: Tensor | int | float) -> None:
    """Call a kernel: tensors as their addresses, the number of threads last.

    Raises:
        RuntimeError: the kernels are not there (see `availability`).
    """
    found = _function(name)
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    found(*values, torch.get_num_threads())


def scratch(name: str, rows: int, cols: int) -> Tensor:
    """Return the scratch (float64) of a kernel family for a (rows, cols) tensor."""
    return torch.empty(_function(name)(rows, cols), dtype=torch.float64)


def _function(name: str) -> Callable[..., Any]:
    library = availability().library
    if library is None:
        raise RuntimeError(availability().reason)
    found: Callable[..., Any] = getattr(library, name)
    return found
