"""A GPU that is not there: torch follows devices and shapes of tensors that hold no numbers.

An operator whose tensors are on two devices fails here as it would on a GPU.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from qtool.quantizers.engines import engine

# Autograd of a build without CUDA refuses its devices; to torch this is not "cpu" either.
GPU = torch.device("cpu", 1)


@contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Within this context, tensors can be on `GPU`, and quantizers compute with torch."""
    with (
        pytest.MonkeyPatch.context() as patch,
        FakeTensorMode(allow_non_fake_inputs=False) as mode,
        engine("eager"),
    ):
        # Fake tensors of these would be on "cpu", wherever their arguments are.
        patch.setattr(Tensor, "new_tensor", _new_tensor)
        patch.setattr(torch, "batch_norm_update_stats", _update_stats)
        # They hold nothing to read.
        patch.setattr(FakeTensor, "tolist", _zeros)
        yield mode


def _new_tensor(self: Tensor, data: object) -> Tensor:
    return torch.empty(np.shape(data), dtype=self.dtype, device=self.device)


def _zeros(self: Tensor) -> object:
    kind = float if self.is_floating_point() else int
    return np.zeros(tuple(self.shape), kind).tolist()


def _update_stats(
    x: Tensor, mean: Tensor, var: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    kept = x.mean((0, 2, 3)), x.var((0, 2, 3))
    for running, new in zip((mean, var), kept, strict=True):
        running.lerp_(new, momentum)
    return kept


def on_gpu(mode: FakeTensorMode, model: nn.Module) -> nn.Module:
    """Return a copy of `model` whose parameters and buffers are on the GPU."""
    with torch._C._DisableTorchDispatch():
        copied = copy.deepcopy(model)

    def moved(tensor: Tensor) -> Tensor:
        with torch._C._DisableTorchDispatch():
            meta = tensor.detach().to("meta")
        fake = FakeTensor(mode, meta, GPU)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(fake, requires_grad=tensor.requires_grad)
        return fake

    shared: dict[Tensor, Tensor] = {}  # by identity; it keeps what it has seen
    for module in copied.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = shared.setdefault(tensor, moved(tensor))
    return copied
