"""``qtool::fake_quant``: what a quantizer is while torch traces a network for export."""

import torch
from torch import Tensor


@torch.library.custom_op("qtool::fake_quant", mutates_args=())
def fake_quant_op(
    x: Tensor,
    steps: Tensor,
    name: str,
    role: str,
    bits: list[int],
    signed: bool,
    zero_points: list[int],
    scheme: str,
    plain: Tensor | None = None,
    keeps: bool = False,
) -> Tensor:
    """Placeholder that `qtool.export.trace` translates; only its shape matters."""
    return x.clone()


@fake_quant_op.register_fake
def _(
    x: Tensor,
    steps: Tensor,
    name: str,
    role: str,
    bits: list[int],
    signed: bool,
    zero_points: list[int],
    scheme: str,
    plain: Tensor | None = None,
    keeps: bool = False,
) -> Tensor:
    return torch.empty_like(x)
