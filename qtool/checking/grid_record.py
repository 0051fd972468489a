"""What ``qtool eval`` found of a run, typed; eval.json is its view (docs/evaluation.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qtool.core.errors import UserError
from qtool.core.files import read_json, write_json
from qtool.core.pairs import pair_name
from qtool.core.records import from_json, to_json
from qtool.core.selection import LayerBits, check_format
from qtool.core.zero_shot import ZeroShot

GRID_FORMAT = 1
# Where accuracy is measured in the run's network itself, not in a deployed file.
TORCH = "torch"


@dataclass(frozen=True)
class Question:
    """What is measured, whatever the pair.

    Args:
        origin: hash of the weights (`qtool.export.adaptive.trained_key`).
        dataset: whose test images.
        images: the first ones, how many.
        runtime: what executes deployed files, or `TORCH`.
        episodes: of new classes instead of images, how many; 0: images.
        task: of each episode: 20-way 5-shot.
        digest: hash of the test labels and of some of the images.
    """

    origin: str
    dataset: str
    images: int
    runtime: str
    episodes: int = 0
    task: str = ""
    digest: str = ""

    def __str__(self) -> str:
        if self.episodes:
            return f"{self.episodes:,} episodes, {self.task}, of {self.dataset}"
        return f"{self.images:,} images of {self.dataset} in {self.runtime}"


@dataclass(frozen=True)
class PairRecord:
    """One pair.

    Args:
        bits: of weights and of layers' inputs.
        accuracy: top-1, percent.
        where: runtime that was measured in.
        bops: per image.
        reason: why in torch, where a runtime was asked for.
        transductive: top-1, percent, with BatchNorm's statistics of the test batches.
        interval: half the 95 % interval of an accuracy over episodes, percent.
        transductive_interval: likewise, of `transductive`.
        zero_shot: what it was given, where it was never trained.
    """

    bits: tuple[int, int]
    accuracy: float
    where: str
    bops: int
    reason: str | None = None
    transductive: float | None = None
    interval: float | None = None
    transductive_interval: float | None = None
    zero_shot: ZeroShot | None = None

    @property
    def pair(self) -> LayerBits:
        """The bits."""
        return LayerBits(*self.bits)


@dataclass(frozen=True)
class Savings:
    """One adaptive model against one model a pair (`qtool.checking.savings`).

    Args:
        pairs: how many models it replaces.
        adaptive_bytes: of the tensors that all pairs are exported from.
        dedicated_bytes: of the models together, each at its own bits.
        storage: percent of their bytes that are saved.
        storage_if_equal: likewise, were they all as large as the adaptive one.
        adaptive_passes: back-propagations of its training.
        dedicated_passes: of theirs, with as many steps each.
        passes: percent that are saved.
    """

    pairs: int
    adaptive_bytes: int
    dedicated_bytes: int
    storage: float
    storage_if_equal: float
    adaptive_passes: int | None = None
    dedicated_passes: int | None = None
    passes: float | None = None


@dataclass(frozen=True)
class GridRecord:
    """Accuracy and cost of a run at pairs of bit-widths.

    Args:
        question: what was measured.
        savings: against one model a pair.
        pairs: by name (`qtool.core.pairs.pair_name`), narrow ones first.
        format: of the file.
    """

    question: Question
    savings: Savings
    pairs: Mapping[str, PairRecord]
    format: int = GRID_FORMAT

    def extended(self, pair: PairRecord) -> "GridRecord":
        """Return the record with `pair` in it, instead of what it had there."""
        found = {**self.pairs, pair_name(pair.pair): pair}
        ordered = sorted(found.items(), key=lambda item: item[1].bits)
        return replace(self, pairs=dict(ordered))

    def only(self, names: list[str]) -> "GridRecord":
        """Return the record of the pairs `names`."""
        return replace(self, pairs={k: v for k, v in self.pairs.items() if k in names})

    def to_json(self) -> dict[str, Any]:
        """Return the content of eval.json."""
        content: dict[str, Any] = to_json(self)
        return {"format": content.pop("format"), **content}


def read_grid(path: Path) -> GridRecord | None:
    """Return the record in `path`, None where there is no such file.

    Raises:
        UserError: damaged, of a newer format, or something else.
    """
    if not path.exists():
        return None
    content = read_json(path, "evaluation")
    check_format(content, GRID_FORMAT, f"evaluation {path}")
    try:
        return from_json(GridRecord, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"evaluation {path} is damaged: {error!r}") from None


def write_grid(path: Path, record: GridRecord) -> None:
    """Write `record` to `path`, whole or not at all."""
    write_json(path, record.to_json())
