"""What tests on episodes find: accuracies of new classes, with their intervals.

The interval is that of 95 % around the mean over episodes, 1.96 s / sqrt(n) with the standard
deviation s over n episodes, as few-shot papers have it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qtool.core.selection import LayerBits

_NORMAL_95 = 1.96


@dataclass(frozen=True)
class EpisodeAccuracy:
    """Accuracy over episodes.

    Args:
        mean: percent.
        interval: half the width of its 95 % interval, percent.
        episodes: how many.
    """

    mean: float
    interval: float
    episodes: int

    @classmethod
    def of(cls, shares: Sequence[float]) -> "EpisodeAccuracy":
        """Return the accuracy from each episode's `shares` of right answers, two or more."""
        percent = 100 * np.array(shares)
        width = _NORMAL_95 * percent.std(ddof=1) / math.sqrt(len(percent))
        return cls(float(percent.mean()), float(width), len(percent))

    def text(self) -> str:
        """Return ``98.51 ± 0.12``."""
        return f"{self.mean:.2f} ± {self.interval:.2f}"


class EpisodeTester(Protocol):
    """Tests a run on episodes of its data's test classes, the same ones at every pair."""

    def deployed(
        self, bits: LayerBits, episodes: int
    ) -> tuple[EpisodeAccuracy, EpisodeAccuracy | None]:
        """Return the accuracy with the BatchNorm statistics that are deployed.

        Args:
            bits: the pair.
            episodes: how many, two or more.

        Returns:
            The accuracy in torch; and that of the integers of the exported file, None at
            pairs that have no such file.
        """

    def transductive(self, bits: LayerBits, episodes: int) -> EpisodeAccuracy:
        """Return the accuracy with BatchNorm on the images of each episode."""
