"""The float task of a prepared network, as the plain network that it was prepared from."""

import torch
from torch import Tensor, nn

from qtool.core.pairs import pair_key
from qtool.core.selection import LayerBits
from qtool.nn.control import quant_layers
from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.norm_rows import switches


@torch.no_grad()
def float_state(network: nn.Module, model: nn.Module, bits: LayerBits) -> dict[str, Tensor]:
    """Return the state of `network` that computes what `model` does at `bits`.

    That is: the weights that both share, those of layers that keep their bits as these are
    (which normalised weights are not without their quantizer), statistics of that row.

    Args:
        network: what `model` was prepared from; they share parameters.
        model: trained, its norms with rows.
        bits: float ones of both.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for layer in quant_layers(model):
        quantizer = layer.weight_quant
        if quantizer.keeps_bits and quantizer.default is not None:
            weight = layer.layer.weight
            state[names[id(weight)]] = quantizer.quantize_at(weight, quantizer.default)
    for switch in switches(model):
        if isinstance(switch, SwitchNorm):
            own, row = switch.norms[0], switch.norms[switch.bank.row(pair_key(bits))]
            prefix = _prefix(network, own)
            for name in ("running_mean", "running_var"):
                state[f"{prefix}{name}"] = row.get_buffer(name).clone()
    return state


def _prefix(network: nn.Module, norm: nn.Module) -> str:
    """Return where `network` has the statistics of `norm`, which is in its prepared form."""
    mean = norm.get_buffer("running_mean")
    for name, buffer in network.named_buffers():
        if buffer is mean:
            return name.removesuffix("running_mean")
    raise ValueError("a BatchNorm of the prepared network is none of the plain one")
