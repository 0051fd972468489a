"""Relay text under construction: one function, its parameters, an operator a line.

    def @main(%x: Tensor[(1, 8), uint8], %fc_weight: Tensor[(4, 8), int8]) -> ... {
      // fc: Gemm
      %0 = cast(%x, dtype="int16");

Every number that is not a small one is a parameter: Relay prints floats with six digits, so
that a text of TVM's own would lose some, and a scalar constant is open to rewriting (`x / c`
becomes `x * (1 / c)`, which rounds otherwise). A parameter of one element is a vector, so that
it stays a load.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = '#[version = "0.0.5"]'


@dataclass(frozen=True)
class TensorType:
    """Shape and element type of a tensor, ``Tensor[(1, 8), uint8]``."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        """Relay's spelling."""
        if not self.shape:
            return self.dtype
        return f"Tensor[({', '.join(map(str, self.shape))}), {self.dtype}]"


@dataclass
class Text:
    """A function of Relay, line by line.

    Args:
        input: its input, the name without ``%``.
        type: of the input, with the batch.
        shapes: of every tensor of the program by name, without the batch.
    """

    input: str
    type: TensorType
    shapes: Mapping[str, tuple[int, ...]]
    parameters: dict[str, NDArray[Any]] = field(default_factory=dict)
    _lines: list[str] = field(default_factory=list)
    _count: int = 0

    @property
    def batch(self) -> int:
        """Images a call."""
        return self.type.shape[0]

    def parameter(self, owner: str, what: str, value: NDArray[Any]) -> str:
        """Add a parameter and return how it is read, ``%features_0_weight``.

        Args:
            owner: the layer or tensor that it belongs to.
            what: it is of it.
            value: of any shape.
        """
        name = self._fresh(identifier(f"{owner}_{what}"))
        self.parameters[name] = np.asarray(value, order="C")
        return f"%{name}"

    def _fresh(self, name: str) -> str:
        """Return `name`, with a number where it is taken."""
        taken, number, found = {self.input, *self.parameters}, 1, name
        while found in taken:
            number += 1
            found = f"{name}_{number}"
        return found

    def call(self, operator: str, *operands: str, **attributes: Any) -> str:
        """Add a line and return its result, ``%12``."""
        given = [*operands, *(f"{key}={attribute(v)}" for key, v in attributes.items())]
        self._lines.append(f"%{self._count} = {operator}({', '.join(given)});")
        self._count += 1
        return f"%{self._count - 1}"

    def note(self, text: str) -> None:
        """Add a comment."""
        self._lines.append(f"// {' '.join(text.split())}")

    def function(self, result: str, type: str) -> str:
        """Return the whole text.

        Args:
            result: the expression that the function returns.
            type: of it.
        """
        types = {self.input: self.type} | {
            name: TensorType(value.shape, str(value.dtype))
            for name, value in self.parameters.items()
        }
        given = ", ".join(f"%{name}: {kind}" for name, kind in types.items())
        body = "".join(f"  {line}\n" for line in (*self._lines, result))
        return f"{VERSION}\ndef @main({given}) -> {type} {{\n{body}}}\n"


def identifier(name: str) -> str:
    """Return `name` in letters, digits and underscores, a letter first."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "v"
    return plain if plain[0].isalpha() else f"v_{plain}"


def number(value: float) -> str:
    """Return a float32 literal, ``-5f``.

    Raises:
        ValueError: Relay would print it with fewer digits than it has.
    """
    text = f"{value:g}"
    if float(text) != value:
        raise ValueError(f"{value} has more digits than Relay prints")
    return f"{text}f"


def small(value: int, dtype: str) -> str:
    """Return an integer literal: ``3``, ``3i16``; bytes, which have none, as a cast."""
    if dtype == "int32":
        return str(value)
    if dtype == "int16":
        return f"{value}i16"
    return f'cast({value}, dtype="{dtype}")'


def attribute(value: Any) -> str:
    """Return the value of an attribute as Relay writes it."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(map(attribute, value))}]"
    return str(value)


def tuple_of(parts: Sequence[str], types: Sequence[TensorType]) -> tuple[str, str]:
    """Return a tuple of results, and its type; a single one has a comma behind it."""
    comma = "," if len(parts) == 1 else ""
    return f"({', '.join(parts)}{comma})", f"({', '.join(map(str, types))}{comma})"
