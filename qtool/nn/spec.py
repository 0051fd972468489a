"""What `prepare` puts where: bits, grids, and exceptions by layer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qtool.errors import UserError
from qtool.qspec import ACTIVATION_BITS, WEIGHT_BITS, LayerBits


@dataclass(frozen=True)
class QuantSpec:
    """What `prepare` puts where.

    Args:
        activation_bits: candidates of every inner layer's input.
        weight_bits: bits of every inner layer's weight, or candidates.
        first_last_bits: weights and inputs of the first and the last layer.
        glue_bits: residual, pooling, gate and output tensors.
        input_step: step of the input image's grid (unsigned, fixed); None: images may be
            negative (normalised), and the step is calibrated and learned.
        asymmetric: signed activation, glue and output grids get a calibrated zero point.
        layers: bits of single layers, whatever the other fields say; also of the first and
            the last.
    """

    activation_bits: tuple[int, ...] = (8, 4, 3)
    weight_bits: int | tuple[int, ...] = 4
    first_last_bits: int = 8
    glue_bits: int = 8
    input_step: float | None = 1 / 255
    asymmetric: bool = False
    layers: Mapping[str, LayerBits] = field(default_factory=dict)

    def of(self, layer: str, is_end: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the candidates of `layer`'s weight and of its input activation."""
        own = self.layers.get(layer)
        if own is not None:
            return (own.weight,), (own.activation,)
        if is_end:
            return (self.first_last_bits,), (self.first_last_bits,)
        one = isinstance(self.weight_bits, int)
        weights = (self.weight_bits,) if one else self.weight_bits
        return weights, self.activation_bits  # type: ignore[return-value]

    def check(self, layers: Iterable[str]) -> None:
        """Refuse bits out of range, and bits for a layer that is not one of `layers`.

        Raises:
            UserError: says which.
        """
        known = list(layers)
        unknown = sorted(set(self.layers) - set(known))
        if unknown:
            raise UserError(
                f"QuantSpec.layers names {', '.join(unknown)}, which the model does not have "
                f"(its layers: {', '.join(known)})"
            )
        for layer in known:
            for is_end in (True, False):
                weights, activations = self.of(layer, is_end)
                _check(f"layer {layer}: weight", weights, WEIGHT_BITS)
                _check(f"layer {layer}: activation", activations, ACTIVATION_BITS)
        _check("QuantSpec.glue_bits:", (self.glue_bits,), ACTIVATION_BITS)


def _check(what: str, bits: tuple[int, ...], known: range) -> None:
    for number in bits:
        if number not in known:
            raise UserError(
                f"{what} bits {number} not supported, expected {known[0]} to {known[-1]}"
            )
    if not bits:
        raise UserError(f"{what} bits: no candidates; give at least one")
