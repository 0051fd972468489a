"""One step of an optimizer from one batch, as the recipe wants it.

A batch is computed in `accumulate` parts; gradients are those of the rule over passes
(`qtool.training.gradients`), means over parts and the processes of the job, clipped together,
and the average of weights follows each step. Only BatchNorm sees the parts: its statistics are
those of one part, over all processes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qtool.data.batch_source import BatchT, parts_of
from qtool.parallel.collectives import average_gradients
from qtool.settings.base import TrainConfig
from qtool.training.averages import Averages
from qtool.training.ema import Ema
from qtool.training.gradients import GradientRule, MeanOverPasses
from qtool.training.optimizers import make_optimizer


class Pass(NamedTuple):
    """What one pass over a batch gives.

    Args:
        loss: a scalar, with its graph.
        logits: (N, classes).
        labels: (N,), what the logits should say.
    """

    loss: Tensor
    logits: Tensor
    labels: Tensor


# A part of a batch -> its passes; each starts when the gradient of the one before is known.
Losses = Callable[[BatchT], Iterable[Pass]]


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
        rule: makes one gradient of the passes'; None: a batch has one pass.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        lr: float,
        rule: GradientRule | None = None,
    ) -> None:
        self.config, self.rule = config, rule or MeanOverPasses()
        self.optimizer = make_optimizer(config, model, lr)
        self.ema = Ema(model, config.ema) if config.ema else None
        groups = self.optimizer.param_groups
        self._parameters: list[nn.Parameter] = [p for g in groups for p in g["params"]]

    def __call__(self, losses: Losses[BatchT], batch: BatchT, averages: Averages) -> None:
        """Do one step.

        Args:
            losses: the passes on a part of the batch.
            batch: where the model is.
            averages: count every pass.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.rule.start(self.config.accumulate)
        for part in parts_of(batch, self.config.accumulate):
            self.rule.start_part()
            found = iter(losses(part))
            while (made := self._next(found)) is not None:
                self.rule.backward(made.loss)
                averages.add(*made)
        average_gradients(self._parameters)
        self.rule.finish(self._parameters)
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()

    def _next(self, found: Iterator[Pass]) -> Pass | None:
        with precision(self.config, self._parameters[0].device):
            return next(found, None)
