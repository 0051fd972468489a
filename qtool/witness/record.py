"""What a witness found, typed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Differing:
    """How many of a number of integers differ from the origin's."""

    mismatched: int
    compared: int


@dataclass(frozen=True)
class TensorFigures:
    """A tensor beside the origin's.

    Args:
        tensor: its name in the artifact.
        inputs: the compared tensors that it is computed from.
        operators: what computes it from these; layers by their names.
        snr_db: of its real values against the origin's floats, 200 where they are the same;
            None: the origin has no floats of this tensor.
        steps: the largest difference from these, in steps of the tensor's grid.
        codes: against the integers that the origin has of it; None: it has none.
        behind_island: in or behind a float island: its integers need not be the same.
    """

    tensor: str
    inputs: tuple[str, ...]
    operators: tuple[str, ...]
    snr_db: float | None
    steps: float
    codes: Differing | None
    behind_island: bool


@dataclass(frozen=True)
class WitnessRecord:
    """What a comparison of an artifact with its origin found.

    Args:
        origin: what it was compared with.
        inputs: what both were given, in words.
        images: how many.
        integers: those that the origin has too, outside and before float islands.
        behind_islands: the others that it has.
        snr_db: of the output against the origin's floats; None: it has none.
        lowest_db, lowest: the lowest ratio, and the tensor that has it.
        same_class: percent of the images; None: the origin has no floats.
        required_db: what every tensor must reach (`qtool.witness.verdict`); None: nothing.
        tensors: in execution order, the output last.
        fallen: a sentence for everything that is not as it must be.
    """

    origin: str
    inputs: str
    images: int
    integers: Differing
    behind_islands: Differing
    snr_db: float | None
    lowest_db: float | None
    lowest: str | None
    same_class: float | None
    required_db: float | None
    tensors: tuple[TensorFigures, ...]
    fallen: tuple[str, ...]
