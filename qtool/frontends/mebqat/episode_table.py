"""Accuracies on test episodes as a table and as metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from rich.table import Table

from qtool.core.pairs import pair_name
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits
from qtool.frontends.mebqat.episode_accuracy import EpisodeAccuracy
from qtool.runs.run import Run

# In metrics: what each accuracy's lines are called.
_NAMES = ("test", "device", "transductive")


@dataclass(frozen=True)
class Tested:
    """What was measured at a pair, see `qtool.frontends.mebqat.episode_accuracy`.

    Args:
        bits: the pair.
        accuracy: in floating point behind the embedding or, of a classifier, all there is.
        device: of the exported file; None: there is none at these bits.
        transductive: None: not measured.
    """

    bits: LayerBits
    accuracy: EpisodeAccuracy
    device: EpisodeAccuracy | None
    transductive: EpisodeAccuracy | None

    @classmethod
    def from_json(cls, bits: LayerBits, line: Mapping[str, Any]) -> "Tested":
        """Return what a line of metrics says."""
        mean, device, transductive = (
            EpisodeAccuracy(*found) if (found := line.get(f"{name}_accuracy")) else None
            for name in _NAMES
        )
        if mean is None:
            raise ValueError(f"metrics of {pair_name(bits)} have no accuracy")
        return cls(bits, mean, device, transductive)

    def to_json(self) -> dict[str, Any]:
        """Return a line of metrics: of each accuracy [percent, interval, episodes]."""
        found = zip(_NAMES, (self.accuracy, self.device, self.transductive), strict=True)
        return {"bits": pair_name(self.bits)} | {
            f"{name}_accuracy": astuple(each) for name, each in found if each is not None
        }

    def text(self) -> str:
        """Return ``w8a3 98.51 ± 0.12 %``."""
        return f"{pair_name(self.bits)} {self.accuracy.text()} %"


def tested(
    run: Run,
    pairs: Sequence[LayerBits],
    measure: Callable[[LayerBits], Tested],
    progress: Progress,
    resume: bool,
) -> list[Tested]:
    """Return what `measure` finds at each of `pairs`; they become metrics of the run.

    Args:
        run: what is tested.
        pairs: of bit-widths.
        measure: does it at one pair.
        progress: shows what is done.
        resume: what the run's metrics have already is not measured again.
    """
    known = {line["bits"]: line for line in run.metrics("test")} if resume else {}
    progress.start("test episodes", len(pairs))
    found = []
    for bits in pairs:
        line = known.get(pair_name(bits))
        found.append(measure(bits) if line is None else Tested.from_json(bits, line))
        if line is None:
            run.add_metrics(phase="test", **found[-1].to_json())
        progress.step(found[-1].text())
    return found


def episode_table(rows: Sequence[Tested]) -> Table:
    """Return the accuracies at each pair, with their 95 % intervals."""
    table = Table(title="accuracy on episodes of new classes, %")
    table.add_column("pair")
    for name in ("accuracy", "exported file", "transductive"):
        table.add_column(name, justify="right")
    for row in rows:
        found = (row.accuracy, row.device, row.transductive)
        table.add_row(
            pair_name(row.bits), *("" if each is None else each.text() for each in found)
        )
    return table
