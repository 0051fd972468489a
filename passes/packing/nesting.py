"""Codes of a layer at several bit-widths, as tables of one stored set of codes.

Codes *nest* where those of fewer bits are a function of the widest ones: Double Rounding's and
SAT's. A file then holds the widest, and for each other width answers to all 256 codes:

    ``Gather(T, Cast(stored))``, or ``Gather(T, Add(Cast(stored), rule))``, T int8

which reads constants only, so that runtimes compute it once, at load. Negative codes count
from the end of T, as in ONNX. BatchNorm turns a channel's codes round, which does not commute
with SAT's floors, or makes them 0: such channels follow another *rule*, answers further on in
T, where ``rule`` (channels, 1, ...) is 256 times its number.

Whether codes nest is seen, not believed: a rule is used where every weight of the channel
agrees with it, and all layers share the rules. What follows none of them (LSQ with a step a
width), and codes that take less room than the nodes, is stored at its own width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph import add_constant
from passes.packing.bit_planes import Codes
from passes.packing.packing import Site, pack, stored_bytes

CODES = 256
# Codes as they are, turned round, and of channels that are off.
_MOST_RULES = 3
# Widths of the stored codes, and of those that are made of them.
_Key = tuple[int, int]


@dataclass(frozen=True)
class Nested:
    """How a file holds the codes of one layer.

    Args:
        stored: int8 codes of any shape.
        bits: in which `stored` is packed.
        table: answers to the stored codes, rule after rule; None: they are the layer's.
        rules: number of the rule of each channel.
        nests: they are a function of the widest codes, whether a table is used or not.
    """

    stored: Codes
    bits: int
    table: Codes | None = None
    rules: NDArray[np.int32] = field(default_factory=lambda: np.zeros(1, np.int32))
    nests: bool = True

    @property
    def shift(self) -> NDArray[np.int32] | None:
        """What is added to the stored codes, (channels, 1, ...); None: nothing."""
        if not self.rules.any():
            return None
        shape = (-1, *[1] * (self.stored.ndim - 1))
        return (self.rules * CODES).astype(np.int32).reshape(shape)

    @property
    def codes(self) -> Codes:
        """The layer's codes."""
        if self.table is None:
            return self.stored
        index = self.stored.astype(np.int32)
        return self.table[index if self.shift is None else index + self.shift]


@dataclass(frozen=True)
class Width:
    """Codes of a layer at one of its widths.

    Args:
        codes: int8 of any shape.
        bits: in which they are packed alone.
        width: the bits that the layer has, by which layers share rules.
        files: in how many they are.
    """

    codes: Codes
    bits: int
    width: int
    files: int = 1

    @property
    def alone(self) -> Nested:
        """The codes as a file of this width alone holds them."""
        return Nested(self.codes, self.bits)


class _Rule:
    """Answers to the stored codes by widths, as far as some channel asks for them."""

    def __init__(self) -> None:
        self.answers: dict[_Key, Codes] = {}
        self.known: dict[_Key, NDArray[np.bool_]] = {}

    def learn(self, rows: Mapping[_Key, tuple[NDArray[np.uint8], Codes]]) -> bool:
        """Take over the answers of one channel; False, and nothing new, where they differ.

        Args:
            rows: stored codes as indices, and the channel's own codes.
        """
        learnt = {}
        for key, (index, codes) in rows.items():
            answers = self.answers.get(key, np.zeros(CODES, np.int8)).copy()
            known = self.known.get(key, np.zeros(CODES, bool)).copy()
            if np.any((answers[index] != codes) & known[index]):
                return False
            answers[index], known[index] = codes, True
            if np.any(answers[index] != codes):
                return False
            learnt[key] = (answers, known)
        for key, (answers, known) in learnt.items():
            self.answers[key], self.known[key] = answers, known
        return True

    def copy(self) -> "_Rule":
        """Return a rule that may learn for itself; arrays are replaced, never written to."""
        twin = _Rule()
        twin.answers, twin.known = dict(self.answers), dict(self.known)
        return twin


def nest(layers: Mapping[str, Sequence[Width]]) -> dict[str, list[Nested]]:
    """Return how files hold the codes of every layer, at each of its widths, in their order.

    Args:
        layers: the widths of each.
    """
    widest = {
        name: max(widths, key=lambda width: (width.width, len(np.unique(width.codes))))
        for name, widths in layers.items()
    }
    rules: list[_Rule] = []
    numbers = {}
    # Those that say most of a rule first: others fit more than one.
    for name in sorted(layers, key=lambda name: -len(np.unique(widest[name].codes))):
        known = rules
        nesting = list[Width]()
        for width in {width.width: width for width in layers[name]}.values():
            trial = [rule.copy() for rule in known]
            found = _follow(widest[name], [*nesting, width], trial)
            if found is not None:
                nesting.append(width)
                rules, numbers[name] = trial, found
    return {
        name: [_held(width, widest[name], numbers.get(name), rules) for width in widths]
        for name, widths in layers.items()
    }


def _follow(
    stored: Width, widths: Sequence[Width], rules: list[_Rule]
) -> NDArray[np.int32] | None:
    """Return the number of each channel's rule; None where they follow too many.

    Args:
        stored: the widest codes.
        widths: those that are to be made of them.
        rules: what is known; they learn, and new ones are appended.
    """
    channels = len(stored.codes)
    index = stored.codes.reshape(channels, -1).view(np.uint8)
    codes = {(stored.width, w.width): w.codes.reshape(channels, -1) for w in widths}
    numbers = np.zeros(channels, np.int32)
    spread = [-len(np.unique(row)) for row in index]
    for channel in np.argsort(spread, kind="stable"):
        rows = {key: (index[channel], of[channel]) for key, of in codes.items()}
        number = next((n for n, rule in enumerate(rules) if rule.learn(rows)), len(rules))
        if number == len(rules):
            rules.append(_Rule())
            if len(rules) > _MOST_RULES or not rules[-1].learn(rows):
                return None
        numbers[channel] = number
    return numbers


def _held(
    width: Width, stored: Width, numbers: NDArray[np.int32] | None, rules: Sequence[_Rule]
) -> Nested:
    if np.array_equal(width.codes, stored.codes):
        return Nested(stored.codes, stored.bits)
    apart = Nested(width.codes, width.bits, nests=False)
    if numbers is None:
        return apart
    table = _table((stored.width, width.width), rules)
    nested = Nested(stored.codes, stored.bits, table, numbers)
    if not np.array_equal(nested.codes, width.codes):
        return apart
    if stored_bytes(width.codes, width.bits) <= width.files * _lookup_bytes():
        return width.alone
    return nested


def _table(key: _Key, rules: Sequence[_Rule]) -> Codes:
    """Return the answers of all rules; the first one's to negative codes are at the end."""
    half, unknown = CODES // 2, np.zeros(CODES, np.int8)
    parts = [np.roll(rule.answers.get(key, unknown), half) for rule in rules]
    return np.roll(np.concatenate(parts), -half)


def place(graph: ir.Graph, before: ir.Node | None, name: str, nested: Nested) -> ir.Value:
    """Add the codes of `nested` to `graph`, as `passes.packing.packing.pack` does.

    Returns:
        The int8 tensor of the layer's codes.
    """
    value = pack(graph, before, name, nested.stored, nested.bits)
    if nested.table is None:
        return value
    site, table = Site(graph, before, name), nested.table
    index = site.apply("Cast", value, to=int(ir.DataType.INT32))
    if nested.shift is not None:
        index = site.apply("Add", index, add_constant(graph, f"{name}.rule", nested.shift))
    answers = site.shared(f"qtool.to_{sha256(table.tobytes()).hexdigest()[:8]}", table)
    result = site.apply("Gather", answers, index)
    result.type, result.shape = value.type, value.shape
    return result


@cache
def _lookup_bytes() -> int:
    """Bytes of the nodes in a file."""
    sizes = list[int]()
    for table in (None, np.zeros(CODES, np.int8)):
        graph = ir.Graph([], [], nodes=[])
        place(graph, None, "w", Nested(np.ones((1, 1, 1, 1), np.int8), 8, table))
        proto = ir.to_proto(graph)
        for node in proto.node:
            node.ClearField("name")
        sizes.append(sum(node.ByteSize() for node in proto.node))
    return sizes[1] - sizes[0]
