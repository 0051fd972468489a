"""What a search chooses from: the open layers of a prepared network and their candidates."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from qtool.core.selection import LayerBits, Selection
from qtool.nn.control import layer_macs, quant_layers
from qtool.nn.modules.quant_layer import QuantLayer


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

    @property
    def uniform(self) -> dict[LayerBits, list[int]]:
        """What every open layer may have at once: the index of its choice there, by bits."""
        rows = [layer.choices for layer in self.open]
        common = [b for b in rows[0] if all(b in row for row in rows)] if rows else []
        return {bits: [row.index(bits) for row in rows] for bits in common}

    def selection(self, picks: Sequence[int]) -> Selection:
        """Return the bits that the choices `picks`, one an open layer, are."""
        pairs = zip(self.open, picks, strict=True)
        return Selection({layer.name: layer.choices[pick] for layer, pick in pairs})


def space_of(
    model: nn.Module, shape: Sequence[int], pairs: Collection[LayerBits] = ()
) -> Space:
    """Return the candidates of a prepared network: every pair of its layers' bits.

    Args:
        model: result of `qtool.nn.prepare.prepare.prepare`.
        shape: (C, H, W) of an image.
        pairs: all that layers with several candidates may have; none: every one.
    """
    macs = dict(layer_macs(model, shape))
    return Space(
        tuple(
            SearchLayer(
                layer.name,
                macs[layer.name],
                layer.layer.weight.numel(),
                _choices(layer, pairs),
                tuple(layer.layer.weight.shape),
            )
            for layer in quant_layers(model)
        )
    )


def _choices(layer: QuantLayer, pairs: Collection[LayerBits]) -> tuple[LayerBits, ...]:
    every = tuple(
        LayerBits(weight, activation)
        for weight in layer.weight_quant.bits
        for activation in layer.input_quant.bits
    )
    is_open = len(every) > 1 and bool(pairs)
    return tuple(bits for bits in every if bits in pairs) if is_open else every
