"""What a search chooses from: the open layers of a prepared network and their candidates."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from qtool.core.selection import LayerBits
from qtool.nn.control import layer_macs, quant_layers


@dataclass(frozen=True)
class SearchLayer:
    """One convolution or linear layer.

    Args:
        name: as in the user's model.
        macs: multiply-accumulates per image.
        weights: elements of its weight.
        choices: its candidates; one where nothing is chosen.
        shape: of its weight, (outputs, inputs / groups, ...); empty: not known.
    """

    name: str
    macs: int
    weights: int
    choices: tuple[LayerBits, ...]
    shape: tuple[int, ...] = ()

    @property
    def is_open(self) -> bool:
        """True where there is something to choose."""
        return len(self.choices) > 1


@dataclass(frozen=True)
class Space:
    """All layers of a network, in module order."""

    layers: tuple[SearchLayer, ...]

    @property
    def open(self) -> tuple[SearchLayer, ...]:
        """The layers where there is something to choose."""
        return tuple(layer for layer in self.layers if layer.is_open)


def space_of(model: nn.Module, shape: Sequence[int]) -> Space:
    """Return the candidates of a prepared network: every pair of its layers' bits.

    Args:
        model: result of `qtool.nn.prepare.prepare.prepare`.
        shape: (C, H, W) of an image.
    """
    macs = dict(layer_macs(model, shape))
    return Space(
        tuple(
            SearchLayer(
                layer.name,
                macs[layer.name],
                layer.layer.weight.numel(),
                tuple(
                    LayerBits(weight, activation)
                    for weight in layer.weight_quant.bits
                    for activation in layer.input_quant.bits
                ),
                tuple(layer.layer.weight.shape),
            )
            for layer in quant_layers(model)
        )
    )
