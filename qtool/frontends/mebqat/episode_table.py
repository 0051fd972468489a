"""Accuracies on test episodes as a table and as metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from rich.table import Table

from qtool.core.pairs import pair_name
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits
from qtool.runs.run import Run
from qtool.settings.episodes import EpisodeConfig
from qtool.training.episode_tests import EpisodeAccuracy, EpisodeTester

# In metrics: what each accuracy's lines are called.
_NAMES = ("test", "device", "transductive")


@dataclass(frozen=True)
class Tested:
    """What was measured at a pair, see `EpisodeTester`.

    Args:
        bits: the pair.
        accuracy: with the statistics that are deployed.
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


def tested_pairs(
    run: Run, config: EpisodeConfig, tester: EpisodeTester, progress: Progress, resume: bool
) -> Table:
    """Test the recipe's `test_bits`; what is found becomes metrics of the run.

    Args:
        run: what is tested.
        config: its recipe.
        tester: of it.
        progress: shows what is done.
        resume: what the run's metrics have already is not measured again.

    Returns:
        All accuracies, to print.
    """
    known = {line["bits"]: line for line in run.metrics("test")} if resume else {}
    progress.start("test episodes", len(config.tested))
    found = []
    for bits in config.tested:
        line = known.get(pair_name(bits))
        if line is None:
            found.append(_tested(config, tester, bits))
            run.add_metrics(phase="test", **found[-1].to_json())
        else:
            found.append(Tested.from_json(bits, line))
        progress.step(found[-1].text())
    return episode_table(found)


def _tested(config: EpisodeConfig, tester: EpisodeTester, bits: LayerBits) -> Tested:
    accuracy, device = tester.deployed(bits, config.test_episodes)
    count = config.transductive_episodes
    return Tested(bits, accuracy, device, tester.transductive(bits, count) if count else None)


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
