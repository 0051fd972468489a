"""The front of a jointly trained run, typed: its pareto.json (docs/search.md)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qtool.core.errors import UserError
from qtool.core.files import read_json, write_json
from qtool.core.records import from_json, to_json
from qtool.core.selection import check_format
from qtool.search import PARETO_FORMAT
from qtool.search.request import Budget

FRONT, FRONT_PICTURE = "pareto.json", "pareto.png"


@dataclass(frozen=True)
class Question:
    """What a front is of, whatever its budgets.

    Args:
        origin: hash of the weights (`qtool.export.adaptive.trained_key`).
        method: who chose.
        candidates: pairs that a layer may have, by name.
        finetuned: whether weights were trained at the chosen bits.
        images: held out, how many.
        digest: hash of their labels and of some of them.
    """

    origin: str
    method: str
    candidates: tuple[str, ...]
    finetuned: bool
    images: int
    digest: str

    def __str__(self) -> str:
        trained = ", fine-tuned" if self.finetuned else ""
        return (
            f"a front of method {self.method} over {', '.join(self.candidates)}{trained}, "
            f"measured on {self.images:,} images"
        )


@dataclass(frozen=True)
class Point:
    """What was found for one budget.

    Args:
        run: name of its folder, beside the file.
        method: who chose.
        bops: per image.
        held_out: accuracy in percent on images held out of training or search.
        accuracy: on the test set, in percent; None: it was not fine-tuned.
        deployed: whether `accuracy` is the integer file's.
        front: no other bits, uniform ones included, are as accurate at no more BOPs.
        budget_bops, budget_bytes, budget_seconds: what it had to meet.
    """

    run: str
    method: str
    bops: int
    held_out: float
    accuracy: float | None
    deployed: bool
    front: bool
    budget_bops: float | None = None
    budget_bytes: float | None = None
    budget_seconds: float | None = None

    @property
    def budget(self) -> Budget:
        """What it had to meet."""
        return Budget(self.budget_bops, self.budget_bytes, self.budget_seconds)


@dataclass(frozen=True)
class Uniform:
    """The run as it is at one pair for all layers; fields as of `Point`."""

    bits: str
    bops: int
    held_out: float
    front: bool


@dataclass(frozen=True)
class FrontRecord:
    """Searched and uniform bits of one jointly trained run.

    Args:
        question: what they are of.
        points: searched ones, by BOPs.
        uniform: pairs, by BOPs.
        format: of the file.
    """

    question: Question
    points: tuple[Point, ...] = ()
    uniform: tuple[Uniform, ...] = ()
    format: int = PARETO_FORMAT

    def find(self, budget: Budget) -> Point | None:
        """Return the point of `budget`."""
        return next((point for point in self.points if point.budget == budget), None)

    def has(self, bits: str) -> bool:
        """Return whether the uniform bits of that name were measured."""
        return any(pair.bits == bits for pair in self.uniform)

    def extended(self, found: Point | Uniform) -> "FrontRecord":
        """Return the record with `found` in it, instead of an earlier point of its folder."""
        if isinstance(found, Uniform):
            uniform = sorted((*self.uniform, found), key=lambda pair: pair.bops)
            return replace(self, uniform=tuple(uniform)).marked()
        others = (point for point in self.points if point.run != found.run)
        points = sorted((*others, found), key=lambda point: point.bops)
        return replace(self, points=tuple(points)).marked()

    def marked(self) -> "FrontRecord":
        """Return the record with every `front` as its points say."""
        every: list[Point | Uniform] = [*self.points, *self.uniform]
        marks = on_front([(one.bops, one.held_out) for one in every])
        count = len(self.points)
        points = zip(self.points, marks[:count], strict=True)
        pairs = zip(self.uniform, marks[count:], strict=True)
        return replace(
            self,
            points=tuple(replace(point, front=mark) for point, mark in points),
            uniform=tuple(replace(pair, front=mark) for pair, mark in pairs),
        )


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return which of (cost, accuracy) no other one dominates: as accurate, and no dearer.

    Of equal ones the first is on the front. Along it accuracy rises with cost.
    """
    marks, best = [False] * len(points), float("-inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        marks[index] = points[index][1] > best
        best = max(best, points[index][1])
    return marks


def read_front(path: Path) -> FrontRecord | None:
    """Return the record in `path`, None where there is no such file.

    Raises:
        UserError: damaged, of a newer format, or of a run that was not trained jointly.
    """
    if not path.exists():
        return None
    content = read_json(path, "front")
    check_format(content, PARETO_FORMAT, f"front {path}")
    try:
        return from_json(FrontRecord, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"front {path} is damaged, or not of a jointly trained run: {error!r}"
        ) from None


def write_front(path: Path, record: FrontRecord) -> None:
    """Write `record` to `path`, whole or not at all."""
    content: dict[str, Any] = to_json(record)
    write_json(path, {"format": content.pop("format"), **content})
