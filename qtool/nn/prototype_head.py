"""Distances to prototypes as a linear layer of integers: the nearest class is its argmax.

-||e - c_k||^2 = 2 e.c_k - ||c_k||^2 - ||e||^2, and what is the same for every class k changes
no argmax: ||e||^2 is left out, and so is the mean over the classes of the rest. With
m = mean of c_k over k,

logit_k = 2 e.(c_k - m) - (||c_k||^2 - mean over k of ||c_k||^2)

Logits then have mean 0 over the classes, so that the largest is at least 0: their grid starts
at 0, where all others may saturate, and ends at the largest logit of a support image. Without
that all classes would share a large offset, and the grid's steps be coarse.
"""

import torch
from torch import Tensor, fx, nn

from qtool.core.selection import LayerBits, Selection
from qtool.nn.control import activation_quantizers, called_layers, select
from qtool.nn.grid_fit import cover, fit_weights
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.nn.prepare.prepare import QuantSpec, prepare

WEIGHT_BITS = 8


def head_weights(centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (ways, D) and bias (ways,) of the layer, float32.

    Args:
        centres: (ways, D).
    """
    exact = centres.double()
    norms = exact.square().sum(1)
    return (2 * (exact - exact.mean(0))).float(), (norms.mean() - norms).float()


def output_quantizer(model: nn.Module) -> FakeQuantizer:
    """Return the quantizer of a prepared network's result."""
    (output,) = (q for q in activation_quantizers(model) if q.role == "output")
    return output


def head_of(model: nn.Module) -> QuantLayer:
    """Return the layer of a prepared network that is called last."""
    return called_layers(model)[-1]


@torch.no_grad()
def fit_head(model: nn.Module, centres: Tensor, embedded: Tensor) -> None:
    """Make the last layer of a prepared `model` that of `centres`, with its grids.

    Args:
        model: its last layer is linear with a bias; its result has a zero point.
        centres: (ways, D).
        embedded: (N, D), of the support images.
    """
    head = head_of(model)
    weight, bias = head_weights(centres)
    head.layer.weight.copy_(weight)
    if head.layer.bias is None:
        raise ValueError(f"layer {head.name} has no bias")
    head.layer.bias.copy_(bias)
    fit_weights(head.weight_quant, weight)
    cover(output_quantizer(model), 0.0, float((embedded @ weight.T + bias).max()))


@torch.no_grad()
def copy_grid(old: FakeQuantizer, bits: int, new: FakeQuantizer) -> None:
    """Give `new`, of one candidate, the grid that `old` has at `bits`."""
    new.set_zero_points([old.zero_points[old.windows.row(bits)]])
    units = new.rule.steps_per_parameter(*new.limits(bits))
    target = new.step if new.learned is None else new.get_parameter(new.learned)
    target.copy_((old.scale(bits) * units).reshape(target.shape))
    if new.offsets is not None and old.offsets is not None:
        new.offsets.copy_(old.offsets[old.bank.row(bits)])


def head_alone(width: int, ways: int, grid: FakeQuantizer) -> fx.GraphModule:
    """Return the layer as a prepared network of its own, its quantizers on.

    Args:
        width: D, of an embedding.
        ways: classes.
        grid: of embeddings.
    """
    (bits,) = grid.bits
    spec = QuantSpec(
        glue_bits=bits, input_step=None if grid.signed else 1.0, asymmetric=True,
        layers={"0": LayerBits(WEIGHT_BITS, bits)},
    )  # fmt: skip
    model = prepare(nn.Sequential(nn.Linear(width, ways)), spec)
    own = head_of(model).input_quant
    if not isinstance(own, FakeQuantizer):
        raise TypeError(f"the layer reads a {type(own).__name__}")
    copy_grid(grid, bits, own)
    select(model, Selection())
    model.eval()
    return model
