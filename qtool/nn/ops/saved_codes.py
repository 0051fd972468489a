"""A layer's input, kept for backward as one byte a value instead of four.

A convolution keeps its input until its weight's gradient is computed. A quantized input is
codes times a step: the codes are kept, and give the same floats again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from qtool.native.library import call
from qtool.quantizers.engines import native_rows

_LARGEST = 256  # codes that a byte can hold


class _Packed(NamedTuple):
    codes: Tensor
    step: Tensor
    below: int


Saved = Tensor | _Packed


@contextmanager
def input_as_codes(x: Tensor, step: Tensor, below: int, above: int) -> Iterator[None]:
    """In this block, autograd keeps `x` as codes.

    Args:
        x: float32 on the grid ``step * {-below, ..., above}``, any shape.
        step: positive scalar, without a gradient.
        below: number of negative codes.
        above: number of positive codes.
    """
    fits = step.ndim == 0 and below + above < _LARGEST and x.requires_grad
    if not (fits and native_rows(x, step)):
        yield
        return
    # The graph keeps `pack`, which therefore must not keep x.
    place, shape = x.data_ptr(), x.shape

    def pack(saved: Tensor) -> Saved:
        same = saved.data_ptr() == place and saved.shape == shape
        return _pack(saved, step, below) if same else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        yield


def _pack(x: Tensor, step: Tensor, below: int) -> _Packed:
    codes = torch.empty_like(x, dtype=torch.uint8)
    call("qtool_pack", x, codes, x.numel(), step, below)
    return _Packed(codes, step, below)


def _unpack(saved: Saved) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    x = torch.empty_like(saved.codes, dtype=torch.float32)
    call("qtool_unpack", saved.codes, x, x.numel(), saved.step, saved.below)
    return x
