"""Weights, norms and grids of one prepared network for another, of the same layers.

The other has fewer candidates, and maybe one more layer at its end.
"""

from torch import fx, nn

from qtool.core.errors import UserError
from qtool.nn.control import called_layers
from qtool.nn.modules.affine import QuantAffine
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.nn.prototype_head import copy_grid, head_of, output_quantizer


def copy_layers(old: nn.Module, new: nn.Module) -> None:
    """Give `new` what `old` has at the bits of `new`.

    Args:
        old: prepared, its norms without rows.
        new: prepared, every quantizer with one of the candidates of `old`.
    """
    layers = called_layers(old)
    for one, other in zip(layers, called_layers(new)[: len(layers)], strict=True):
        _copy_layer(one, other)
    for affine, copy in zip(_affines(old), _affines(new), strict=True):
        copy.norm.load_state_dict(affine.norm.state_dict())
    for grid, wanted in zip(_glue(old), _glue(new), strict=True):
        copy_grid(grid, wanted.bits[0], wanted)


def copy_embedding(old: nn.Module, new: nn.Module) -> None:
    """Give `new`, an embedding with a layer behind it, what `old`, the embedding, has.

    Raises:
        UserError: the layer does not read the embedding's result alone.
    """
    copy_layers(old, new)
    reader = head_of(new).input_quant
    if not isinstance(reader, FakeQuantizer):
        raise UserError("the embedding's result is read inside it too: no layer can follow")
    copy_grid(output_quantizer(old), reader.bits[0], reader)


def _copy_layer(old: QuantLayer, new: QuantLayer) -> None:
    new.layer.load_state_dict(old.layer.state_dict())
    if old.norm is not None and new.norm is not None:
        new.norm.load_state_dict(old.norm.state_dict())
    if new.weight_quant.learned is not None:
        row = old.weight_quant.bank.row(new.weight_quant.bits[0])
        new.weight_quant.step.data.copy_(old.weight_quant.step.data[row][None])
    grid, wanted = old.input_quant, new.input_quant
    if isinstance(grid, FakeQuantizer) and isinstance(wanted, FakeQuantizer):
        copy_grid(grid, wanted.bits[0], wanted)


def _affines(model: nn.Module) -> list[QuantAffine]:
    return [module for module in model.modules() if isinstance(module, QuantAffine)]


def _glue(model: nn.Module) -> list[FakeQuantizer]:
    """Return the quantizers of tensors between layers in the order of their calls."""
    if not isinstance(model, fx.GraphModule):
        raise TypeError(f"got a {type(model).__name__}, expected a prepared network")
    calls = (node for node in model.graph.nodes if node.op == "call_module")
    modules = (model.get_submodule(str(node.target)) for node in calls)
    return [module for module in modules if isinstance(module, FakeQuantizer)]
