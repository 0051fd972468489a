"""Multiply-accumulates of a torch model, layer by layer, without computing anything."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qtool.core.cost import conv_macs
from qtool.core.errors import UserError
from qtool.core.importing import reason
from qtool.models.owned import owned

Weight = Callable[[nn.Module], Tensor | None]


def own_weight(module: nn.Module) -> Tensor | None:
    """Return the weight of a convolution or linear layer, None for other modules."""
    counted = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    return module.get_parameter("weight") if counted else None


def count_macs(
    model: nn.Module, input_shape: Sequence[int], weight_of: Weight = own_weight
) -> list[tuple[str, int]]:
    """Return (layer, MACs per image) of convolution and linear layers, in call order.

    Args:
        model: any module; a copy of it is run on the meta device.
        input_shape: (C, H, W).
        weight_of: tells which modules count, and their weight (C_out, C_in / groups, ...).
    """
    counts: dict[str, int] = {}
    twin = copy.deepcopy(owned(model)).eval().to("meta")
    for name, module in twin.named_modules():
        weight = weight_of(module)
        if weight is not None:
            module.register_forward_hook(_counter(name, weight.shape, counts))
    try:
        with torch.no_grad(), torch.device("meta"):
            twin(torch.empty(1, *input_shape))
    except Exception as error:  # forward() may be the user's own and raise anything
        shape = "x".join(map(str, input_shape))
        raise UserError(f"input {shape} does not fit the model: {reason(error)}") from None
    return list(counts.items())


def _counter(name: str, weight_shape: Sequence[int], counts: dict[str, int]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        counts[name] = counts.get(name, 0) + conv_macs(output.shape, weight_shape)

    return hook
