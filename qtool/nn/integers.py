"""The integers of a prepared network in evaluation: what the exported file must have."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.shared_grid import SharedGrid
from qtool.nn.ops.on_grid import OnGrid

Codes = NDArray[np.uint8]


@torch.no_grad()
def integers(model: nn.Module, x: Tensor) -> tuple[dict[str, Codes], Tensor]:
    """Run a prepared `model`; return the codes of every tensor on a grid, and the output.

    Codes are keyed as `passes.graph.FakeQuant.key` has it: by the quantizer's name, a layer's
    input by ``layer/input``. Quantizers that are off have none.

    Args:
        model: its bits are selected.
        x: images (N, C, H, W).
    """
    found: dict[str, Codes] = {}

    def keep(module: nn.Module, _inputs: Any, result: Tensor) -> None:
        if isinstance(module, FakeQuantizer | SharedGrid) and isinstance(result, OnGrid):
            key = f"{module.name}/input" if module.role == "activation" else module.name
            found[key] = (result.codes + result.grid.zero_point).cpu().numpy().astype(np.uint8)

    kinds = (FakeQuantizer, SharedGrid)
    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, kinds)]
    try:
        model.eval()
        output: Tensor = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found, output
