"""Grids and bit selections: the vocabulary that training, passes and runtimes share.

A *grid* is an integer code window with a scale: value = (code - zero_point) * scale.
Activations live in uint8 containers, weights in int8 containers; the b-bit meaning is a
window inside the container (``design``: unsigned windows start at 0, signed ones are centred
on 128, weights are symmetric and narrow).
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qtool.core.errors import UserError, unknown_name
from qtool.core.files import read_json
from qtool.core.grids import ACTIVATION_BITS, FLOAT_WIDTHS, WEIGHT_BITS

BITS_FORMAT = 1


@dataclass(frozen=True)
class LayerBits:
    """Bit-widths of one convolution or linear layer: its weights and its input activation.

    Weights of 16 or 32 bits (`FLOAT_WIDTHS`) are floating point. So may their input be: it
    then has the widest grid that was trained, as tensors between operators are 8-bit codes.
    """

    weight: int
    activation: int

    @property
    def is_float(self) -> bool:
        """True when the layer computes in floating point."""
        return self.weight in FLOAT_WIDTHS


@dataclass(frozen=True)
class Selection:
    """Bits for every layer: explicit `layers`, or one `default` for all that may vary.

    Args:
        layers: bits by layer name or pattern (``layer3.*``; ``*`` and ``?`` match dots too).
            A name beats every pattern; of several patterns the last that matches counts.
        default: bits of the layers that no name and no pattern is about.
        source: where it was read, for errors.
    """

    layers: Mapping[str, LayerBits] = field(default_factory=dict)
    default: LayerBits | None = None
    source: str = field(default="", compare=False)

    def of(self, layer: str) -> LayerBits | None:
        """Return the bits asked for `layer`, None when the selection is silent."""
        named = self._named(layer)
        return self.default if named is None else named

    def resolve(self, names: Iterable[str]) -> "Selection":
        """Return the same selection with names instead of patterns.

        Args:
            names: the network's layers, in order.

        Raises:
            UserError: a name or pattern that is about none of them; says the nearest.
        """
        known = dict.fromkeys(names)
        for key in self.layers:
            if key not in known and not any(fnmatchcase(name, key) for name in known):
                kind = f"layer or pattern in {self.source}" if self.source else "layer"
                raise unknown_name(kind, key, known)
        found = {name: bits for name in known if (bits := self._named(name)) is not None}
        return replace(self, layers=found)

    def _named(self, layer: str) -> LayerBits | None:
        """Return the bits of the name or pattern that is about `layer`."""
        if layer in self.layers:
            return self.layers[layer]
        matching = (
            bits for key, bits in reversed(list(self.layers.items()))
            if _WILD.search(key) and fnmatchcase(layer, key)
        )  # fmt: skip
        return next(matching, None)


_WILD = re.compile(r"[*?\[]")
_UNIFORM = re.compile(r"w(\d+)a(\d+)", re.IGNORECASE)


def parse_uniform(text: str, float_inputs: bool = False) -> LayerBits | None:
    """Parse ``w4a8``; None when `text` has another form (a file name, say).

    Args:
        text: what the user gave.
        float_inputs: integer weights may have inputs of 16 or 32 bits, as no device has them.
    """
    match = _UNIFORM.fullmatch(text)
    if match is None:
        return None
    weight, activation = int(match[1]), int(match[2])
    return _checked(LayerBits(weight, activation), "", text, float_inputs)


def _checked(bits: LayerBits, layer: str, where: str, float_inputs: bool = False) -> LayerBits:
    """Return `bits`, or refuse them."""
    for what, got, known in (
        ("weight", bits.weight, WEIGHT_BITS), ("activation", bits.activation, ACTIVATION_BITS),
    ):  # fmt: skip
        if got not in known and got not in FLOAT_WIDTHS:
            raise UserError(
                f"{where}: {layer}{what} bits {got} not supported, expected {known.start} to "
                f"{known.stop - 1}, or {' or '.join(map(str, FLOAT_WIDTHS))} for float"
            )
    if bits.activation in FLOAT_WIDTHS and not (bits.is_float or float_inputs):
        raise UserError(
            f"{where}: {layer}weights of {bits.weight} bits with an input of "
            f"{bits.activation}: integer layers read up to {ACTIVATION_BITS.stop - 1} bits"
        )
    return bits


def read_selection(text: str, what: str = "--bits") -> Selection:
    """Return the selection that `text` names.

    Args:
        text: what the user gave: ``w4a4``, a list such as ``w4a4,conv1=w8a8,layer3.*=w4a8``,
            or the path of a bits file (docs/bits.md).
        what: where, for the error.
    """
    uniform = parse_uniform(text)
    if uniform is not None:
        return Selection(default=uniform, source=what)
    if os.path.exists(text):
        return selection_from_json(read_json(Path(text), "bits file"), text)
    if "=" in text or "," in text:
        return _parse_list(text, what)
    raise UserError(f"{what} {text!r}: neither a pattern like w4a4 nor an existing file")


def _parse_list(text: str, what: str) -> Selection:
    """Parse ``w4a4,conv1=w8a8,layer3.*=w4a8``: default, names, patterns."""
    layers: dict[str, LayerBits] = {}
    for part in text.split(","):
        key, _, value = part.strip().rpartition("=")
        bits = parse_uniform(value)
        if bits is None:
            raise UserError(
                f"{what} {text!r}: {part!r} is not like w4a4, conv1=w8a8 or layer3.*=w4a8 "
                "(nor is all of it an existing file)"
            )
        if key in layers:
            raise UserError(f"{what} {text!r}: {key or 'the default'} is given twice")
        layers[key] = bits
    default = layers.pop("", None)
    return Selection(layers, default, what)


def selection_from_json(value: Mapping[str, Any], where: str) -> Selection:
    """Check and convert the content of a bits file (docs/bits.md)."""
    what = f"bits file {where}"
    if "format" not in value:
        raise UserError(f'{what}: no format number; write "format": {BITS_FORMAT} into it')
    check_format(value, BITS_FORMAT, what)
    for key in value:
        # Other keys are what searches tell of themselves.
        near = difflib.get_close_matches(key, _BITS_KEYS, n=1, cutoff=0.85)
        if near and key not in _BITS_KEYS:
            raise UserError(f"{what}: unknown key {key!r}: did you mean {near[0]}?")
    default, layers = value.get("default"), value.get("layers")
    if layers is None and default is not None:
        layers = {}
    if not isinstance(layers, dict):
        raise UserError(f"{what}: no 'layers' object (layer: [weight, activation])")
    return Selection(
        {name: _bits_of(f"layer {name}", bits, where) for name, bits in layers.items()},
        None if default is None else _bits_of("default", default, where),
        what,
    )


_BITS_KEYS = ("format", "layers", "default")


def _bits_of(name: str, value: Any, where: str) -> LayerBits:
    """Convert ``[4, 8]`` or ``"w4a8"``."""
    match = _UNIFORM.fullmatch(value) if isinstance(value, str) else None
    pair = [int(group) for group in match.groups()] if match else value
    if not (isinstance(pair, list) and len(pair) == 2 and all(type(b) is int for b in pair)):
        raise UserError(
            f"bits file {where}: {name}: got {json.dumps(value)}, expected [w, a] such as "
            '[4, 8], or "w4a8"'
        )
    return _checked(LayerBits(*pair), f"{name}: ", where)


def check_format(value: Mapping[str, Any], newest: int, what: str) -> None:
    """Refuse a file whose ``format`` number this qtool does not know."""
    got = value.get("format")
    if type(got) is not int:
        raise UserError(f"{what}: no 'format' number: not written by qtool")
    if got > newest:
        raise UserError(
            f"{what}: format {got} is newer than this qtool reads (up to {newest}); "
            "upgrade qtool"
        )


def layers_to_json(layers: Iterable[tuple[str, LayerBits]]) -> dict[str, list[int]]:
    """Return the ``layers`` object of a bits.json."""
    return {name: [bits.weight, bits.activation] for name, bits in layers}
