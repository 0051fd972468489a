"""What the steps of a network are called with: pointers into memory and constants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.constants import Constants
from passes.emit.tvm.cpu.narrowing import Weights
from passes.emit.tvm.cpu.plan.steps import INPUT, OUTPUT, Operand


@dataclass(frozen=True)
class Stored:
    """Where a network's constants are.

    Args:
        constants: of the module.
        weights: what is made of them for the network.
    """

    constants: Constants
    weights: Weights | None

    def made(self, array: NDArray[Any]) -> bool:
        """True where a constant is made, not stored."""
        return self.weights is not None and self.weights.place(array) is not None

    def place(self, array: NDArray[Any]) -> int:
        """Return the offset of a constant, in the array of all or in what is made."""
        place = None if self.weights is None else self.weights.place(array)
        return self.constants.place(array) if place is None else place


@dataclass(frozen=True)
class Pointers:
    """What a step's operands are at run time.

    Args:
        x, y: the image and the result.
        memory: tensors, at `offsets` in row `row`.
        blob: all constants.
        made: the weights that are made of them.
        places: of a function of several networks: where each constant is; None for one.
        stored: where they are, of one network.
        image: number of the image in the batch.
    """

    x: Any
    y: Any
    memory: Any
    blob: Any
    made: Any
    places: Any
    stored: Stored
    image: Any
    row: Any
    offsets: Mapping[str, int]

    def of(self, operand: Operand) -> Any:
        """Return the pointer of an operand."""
        if operand.tensor in (INPUT, OUTPUT):
            buffer = self.x if operand.tensor == INPUT else self.y
            return T.address_of(buffer[(self.image, *[0] * (len(buffer.shape) - 1))])
        return T.address_of(
            self.memory[self.row, self.offsets[operand.tensor] + operand.offset]
        )

    def constant(self, array: NDArray[Any], number: int) -> Any:
        """Return the pointer of a constant, the `number`-th of all steps."""
        place = self.stored.place(array) if self.places is None else self.places[number]
        if self.stored.made(array):
            return T.address_of(self.made[0, place])
        return T.address_of(self.blob[place])
