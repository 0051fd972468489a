"""What a network's tensors must be before anything is computed with them: one line a fault.

1. They are there: no lazy module that still waits for its first batch, nothing on the meta
   device; parameters are float32, dense, and on the CPU, where networks are built (training
   moves them).
2. Their values are finite, with squares that are too, and variances are positive.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

_LAZY = (UninitializedParameter, UninitializedBuffer)
_LAZY_HINT = "lazy modules must see a batch in the factory"
# Grids are fitted by squared errors, which must fit float32.
_LARGEST = 1e18
_LAYERS = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)


def unusable_tensors(model: nn.Module) -> list[str]:
    """Return what is wrong with the kinds of `model`'s tensors."""
    if lazy := without_size(model):
        return [f"{', '.join(lazy)} have no size yet: {_LAZY_HINT}"]
    faults = []
    for name, tensor in _tensors(model):
        is_parameter = isinstance(tensor, nn.Parameter)
        if tensor.device.type != "cpu":
            faults.append(
                f"{name} is on device {tensor.device}, expected the cpu: build the network "
                "there, training moves it"
            )
        elif tensor.layout != torch.strided or tensor.is_quantized:
            faults.append(f"{name} is {_kind(tensor)}, expected a dense float32 tensor")
        elif is_parameter and tensor.dtype != torch.float32:
            faults.append(
                f"parameter {name} is {_kind(tensor)}, expected float32: call .float() on the "
                "network in the factory"
            )
    return faults + _empty_layers(model)


def without_size(model: nn.Module) -> list[str]:
    """Return the tensors of lazy modules that have no size yet."""
    return [name for name, tensor in _tensors(model) if isinstance(tensor, _LAZY)]


def wrong_values(model: nn.Module) -> list[str]:
    """Return which tensors of `model` hold NaN, infinity or a negative variance, and where.

    Buffers other than statistics may hold infinity, as masks do.
    """
    faults = []
    for name, tensor in _tensors(model):
        if not tensor.is_floating_point():
            continue
        may_be_large = not isinstance(tensor, nn.Parameter) and "running_" not in name
        bad = tensor.isnan() if may_be_large else ~(tensor.abs() <= _LARGEST)
        if not bad.any():
            continue
        where = bad.nonzero()
        index = ", ".join(map(str, where[0].tolist()))
        faults.append(
            f"{name}[{index}] is {tensor[tuple(where[0])].item():g} ({len(where)} of its "
            f"{tensor.numel()} values are not finite, or too large to square)"
        )
    for path, module in model.named_modules():
        var = getattr(module, "running_var", None)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(var, Tensor):
            low = var.min() + module.eps
            if low <= 0:
                lowest = int(var.argmin())
                faults.append(
                    f"{path}.running_var[{lowest}] is {var[lowest].item():g} with eps "
                    f"{module.eps:g}; a variance is positive"
                )
    return faults


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _empty_layers(model: nn.Module) -> list[str]:
    return [
        f"layer {path}: {name} of size {tuple(tensor.shape)} has no values"
        for path, module in model.named_modules()
        if isinstance(module, _LAYERS)
        for name, tensor in module.named_parameters(recurse=False)
        if tensor.numel() == 0
    ]


def _kind(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    layout = str(tensor.layout).removeprefix("torch.")
    return kind if tensor.layout == torch.strided else f"{kind} in layout {layout}"
