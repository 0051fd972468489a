"""Look at a network without leaving a trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from qtool.nn.control import quantizers


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within this context `model` is in evaluation mode; afterwards all is as it was before.

    That is: parameters and buffers, every module's mode, every quantizer's selected bits. The
    copy of the parameters that this takes is the size of the network.

    Args:
        model: a float or a prepared network.
    """
    modes = [(module, module.training) for module in model.modules()]
    selected = [(q, q.selected, q.mix, q.is_half) for q in quantizers(model)]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    try:
        yield
    finally:
        model.load_state_dict(state)
        for quantizer, bits, mix, is_half in selected:
            quantizer.selected, quantizer.mix, quantizer.is_half = bits, mix, is_half
        for module, training in modes:
            module.training = training
