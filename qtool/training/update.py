"""One step of an optimizer from one batch, as the recipe wants it.

A batch is computed in `accumulate` parts; gradients are the mean over parts, passes and the
processes of the job, clipped together, and the average of weights follows each step. Only
BatchNorm sees the parts: its statistics are those of one part, over all processes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from qtool.parallel.collectives import average_gradients
from qtool.settings.base import TrainConfig
from qtool.training.averages import Averages
from qtool.training.ema import Ema
from qtool.training.optimizers import make_optimizer

Pass = tuple[Tensor, Tensor]
Losses = Callable[[Tensor, Tensor], Iterable[Pass]]


def precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Return what to compute a loss under: bfloat16 where the recipe has `autocast`."""
    if not config.autocast:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


class Update:
    """Trains the parameters of `model`.

    Args:
        config: the recipe.
        model: what is trained.
        lr: learning rate of the weights.
        passes: how many losses a batch has; the gradient is that of their mean.
    """

    def __init__(
        self, config: TrainConfig, model: nn.Module, lr: float, passes: int = 1
    ) -> None:
        self.config, self.passes = config, passes
        self.optimizer = make_optimizer(config, model, lr)
        self.ema = Ema(model, config.ema) if config.ema else None
        groups = self.optimizer.param_groups
        self._parameters: list[nn.Parameter] = [p for g in groups for p in g["params"]]

    def __call__(self, losses: Losses, x: Tensor, labels: Tensor, averages: Averages) -> None:
        """Do one step.

        Args:
            losses: (x, labels) of a part of the batch -> (loss, logits) of every pass; the
                next pass starts when the gradient of the one before is known.
            x: images.
            labels: (N,).
            averages: count every pass.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.config.accumulate
        for part_x, part_labels in zip(x.chunk(parts), labels.chunk(parts), strict=True):
            found = iter(losses(part_x, part_labels))
            while (made := self._next(found, x.device)) is not None:
                loss, logits = made
                (loss / (parts * self.passes)).backward()  # type: ignore[no-untyped-call]
                averages.add(loss, logits, part_labels)
        average_gradients(self._parameters)
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()

    def _next(self, found: Iterator[Pass], device: torch.device) -> Pass | None:
        with precision(self.config, device):
            return next(found, None)
