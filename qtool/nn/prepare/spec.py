"""What `prepare` puts where: quantizers, bits, and exceptions by layer.

The first and the last layer have `first_last_bits`. Where the quantizer's weights do not fit
8 bits on the device (`WeightQuantizer.widest`: DoReFa, Any-Precision), 8-bit ends are LSQ's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from qtool.core.errors import UserError, unknown_name
from qtool.core.grids import ACTIVATION_BITS, FLOAT_WIDTHS, WEIGHT_BITS
from qtool.core.selection import LayerBits
from qtool.quantizers import QUANTIZERS, weight_quantizer

Bits = int | tuple[int, ...]
_END_QUANTIZER = "lsq"


@dataclass(frozen=True)
class LayerSpec:
    """Exceptions for some layers; what is None or empty is as everywhere else.

    Args:
        weight_bits: bits, or candidates; 32: the layer computes in floating point.
        activation_bits: bits, or candidates, of the input.
        quantizer: of weights and input.
        weight_quantizer: of weights, if another.
        activation_quantizer: of the input, if another.
    """

    weight_bits: Bits | None = None
    activation_bits: Bits | None = None
    quantizer: str = ""
    weight_quantizer: str = ""
    activation_quantizer: str = ""


@dataclass(frozen=True)
class LayerPlan:
    """What one layer gets: candidates and quantizers of its weight and its input."""

    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    weight: str
    activation: str


@dataclass(frozen=True)
class QuantSpec:
    """What `prepare` puts where.

    Args:
        activation_bits: candidates of every inner layer's input.
        weight_bits: bits of every inner layer's weight, or candidates.
        first_last_bits: weights and inputs of the first and the last layer; 32: these layers
            compute in floating point, on 8-bit inputs.
        glue_bits: residual, pooling, gate and output tensors; their steps are LSQ's always.
        input_step: step of the input image's grid (unsigned, fixed); None: images may be
            negative (normalised), and the step is calibrated and learned.
        asymmetric: signed activation, glue and output grids get a calibrated zero point.
        layers: exceptions by layer name or pattern (``layer1.*.conv1``; ``*`` and ``?`` match
            dots too); the first that matches a layer counts, whatever the other fields say,
            also for the first and the last layer.
        quantizer: of weights and layer inputs, a key of `qtool.quantizers.QUANTIZERS`.
        weight_quantizer: of weights, if another.
        activation_quantizer: of layer inputs, if another.
        per_channel: a scale for each output channel of a weight (True), one for the tensor
            (False), or what the quantizer's paper does (None).
        shared: candidates share a step, alpha or offset (MEBQAT); else each has its own.
        ends_keep: the first and the last layer have `first_last_bits` whatever a selection
            says of all layers, floating point included (MEBQAT).
        open_end: another layer will follow, as behind an embedding: the last one is an inner
            one.
    """

    activation_bits: tuple[int, ...] = (8, 4, 3)
    weight_bits: Bits = 4
    first_last_bits: int = 8
    glue_bits: int = 8
    input_step: float | None = 1 / 255
    asymmetric: bool = False
    layers: Mapping[str, LayerBits | LayerSpec] = field(default_factory=dict)
    quantizer: str = "lsq"
    weight_quantizer: str = ""
    activation_quantizer: str = ""
    per_channel: bool | None = None
    shared: bool = False
    ends_keep: bool = False
    open_end: bool = False

    def of(self, layer: str, is_end: bool) -> LayerPlan:
        """Return what `layer` gets; `is_end`: as `QuantLayer` has it."""
        own = self._exception(layer)
        weights: Bits = self.first_last_bits if is_end else self.weight_bits
        inputs: Bits = self.first_last_bits if is_end else self.activation_bits
        weights = weights if own.weight_bits is None else own.weight_bits
        inputs = inputs if own.activation_bits is None else own.activation_bits
        plan = _plan(_candidates(weights), _candidates(inputs), *self._quantizers(own))
        named = own.quantizer or own.weight_quantizer or own.activation_quantizer
        if is_end and not named and max(plan.weight_bits, default=0) == WEIGHT_BITS[-1]:
            if weight_quantizer(plan.weight).widest < WEIGHT_BITS[-1]:
                return LayerPlan(
                    plan.weight_bits, plan.activation_bits, _END_QUANTIZER, _END_QUANTIZER
                )
        return plan

    def _exception(self, layer: str) -> LayerSpec:
        for pattern, found in self.layers.items():
            if fnmatchcase(layer, pattern):
                if isinstance(found, LayerBits):
                    return LayerSpec(found.weight, found.activation)
                return found
        return LayerSpec()

    def _quantizers(self, own: LayerSpec) -> tuple[str, str]:
        usual = own.quantizer or self.quantizer
        weight = own.quantizer or self.weight_quantizer or usual
        activation = own.quantizer or self.activation_quantizer or usual
        return own.weight_quantizer or weight, own.activation_quantizer or activation

    def check(self, layers: Iterable[str]) -> None:
        """Refuse names, bits and patterns that are not known.

        Args:
            layers: the model's, in order.

        Raises:
            UserError: says which.
        """
        known = list(layers)
        for pattern in self.layers:
            if known and not any(fnmatchcase(layer, pattern) for layer in known):
                raise unknown_name("layer or pattern in QuantSpec.layers", pattern, known)
        for index, layer in enumerate(known):
            for is_end in (True, False):
                _check_plan(layer, self.of(layer, is_end))
            _check_widest(layer, self.of(layer, index in (0, len(known) - 1)))
        _check("QuantSpec.glue_bits:", (self.glue_bits,), ACTIVATION_BITS)


def _candidates(bits: Bits) -> tuple[int, ...]:
    return (bits,) if isinstance(bits, int) else tuple(bits)


def _is_float(weights: tuple[int, ...]) -> bool:
    return len(weights) == 1 and weights[0] in FLOAT_WIDTHS


def _plan(
    weights: tuple[int, ...], inputs: tuple[int, ...], weight: str, activation: str
) -> LayerPlan:
    if _is_float(weights):  # such a layer reads the widest grid there is
        inputs = tuple(min(bits, ACTIVATION_BITS[-1]) for bits in inputs)
    return LayerPlan(weights, inputs, weight, activation)


def _check_plan(layer: str, plan: LayerPlan) -> None:
    for name in (plan.weight, plan.activation):
        if name not in QUANTIZERS:
            raise unknown_name("quantizer", name, QUANTIZERS)
    if not _is_float(plan.weight_bits):
        _check(f"layer {layer}: weight", plan.weight_bits, WEIGHT_BITS, FLOAT_WIDTHS)
    _check(f"layer {layer}: activation", plan.activation_bits, ACTIVATION_BITS)


def _check_widest(layer: str, plan: LayerPlan) -> None:
    widest = weight_quantizer(plan.weight).widest
    if all(widest < bits <= WEIGHT_BITS[-1] for bits in plan.weight_bits):
        raise UserError(
            f"layer {layer}: {plan.weight} weights of {plan.weight_bits[0]} bits are odd "
            f"integers that int8 does not hold: use up to {widest} bits, or weight_quantizer "
            "sat or lsq"
        )


def _check(
    what: str, bits: tuple[int, ...], known: range, alone: tuple[int, ...] = ()
) -> None:
    for number in bits:
        if number in alone:
            raise UserError(f"{what} bits {number}: float needs no candidate, leave it out")
        if number not in known:
            raise UserError(
                f"{what} bits {number} not supported, expected {known[0]} to {known[-1]}"
            )
        if bits.count(number) > 1:
            raise UserError(f"{what} bits {number}: given twice")
    if not bits:
        raise UserError(f"{what} bits: no candidates; give at least one")
