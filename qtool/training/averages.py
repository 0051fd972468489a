"""Loss and accuracy of an epoch, over the processes of a job and across interruptions."""

import math

import torch
from torch import Tensor

from qtool.parallel.collectives import all_reduce_sum


class Averages:
    """Running loss and accuracy.

    Batches wait in `_waiting` until somebody looks, because looking takes a message to the
    other processes, and on a GPU stops the queue. They are then added one by one: the sums do
    not depend on when somebody looked.
    """

    def __init__(self) -> None:
        # loss, right, count
        self.totals = torch.zeros(3, dtype=torch.float64)
        self._waiting: list[Tensor] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count one batch: its mean loss, logits (N, classes) and labels (N,)."""
        right = (logits.detach().argmax(1) == labels).sum()
        mean = loss.detach().double()
        self._waiting.append(
            torch.stack([mean * len(labels), right, mean.new_tensor(len(labels))])
        )

    def look(self) -> None:
        """Add what waits to `totals`; in a job, all processes at once."""
        if self._waiting:
            for row in all_reduce_sum(torch.stack(self._waiting)).cpu():
                self.totals += row
            self._waiting.clear()

    @property
    def loss(self) -> float:
        """Mean loss up to the last look."""
        return float(self.totals[0]) / max(float(self.totals[2]), 1.0)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent up to the last look."""
        return 100 * float(self.totals[1]) / max(float(self.totals[2]), 1.0)

    @property
    def is_finite(self) -> bool:
        """False once a loss was not."""
        return math.isfinite(float(self.totals[0]))

    def text(self) -> str:
        """``loss 0.512 acc 88.1 %``, of the last look; nothing before the first."""
        if not self.totals[2]:
            return ""
        return f"loss {self.loss:.3f} acc {self.accuracy:.1f} %"
