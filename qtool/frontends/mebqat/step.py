"""One step of MEBQAT (arXiv 2207.10188): the inner loop over bit-widths, the outer update.

L_m = CE(z_m, labels) + d * CE(z_m, softmax(z_FP))   for task m, with its logits z_m
L_FP = CE(z_FP, labels)

The inner loop is the gradient of each L_m at the shared weights; the outer one a step along
its mean over the tasks that used a parameter, every element clamped to +-10
(`qtool.training.gradients.MeanOverUses`). The teacher is the float task of the same weights on
the same batch, without a gradient, at temperature 1; d = 1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.data.batches import Batch
from qtool.data.clips import clip_logits
from qtool.frontends.mebqat.tasks import Tasked
from qtool.nn.control import PairSelector, quantizers
from qtool.nn.shared_prefix import SharedPrefix
from qtool.settings.mebqat import MebqatConfig
from qtool.training.gradients import MeanOverUses
from qtool.training.losses import task_loss
from qtool.training.update import Losses, Pass, Update


def pairs_step(config: MebqatConfig, model: nn.Module) -> tuple[Update, Losses[Tasked[Batch]]]:
    """Return the step on the tasks of a batch, and its losses.

    Args:
        config: the recipe.
        model: prepared for its candidates.
    """
    shared, select = SharedPrefix(model, float_tensors=True), PairSelector(model)

    def losses(tasked: Tasked[Batch]) -> Iterator[Pass]:
        x, labels = tasked.batch
        model.train()
        teacher: Tensor | None = None
        with shared.passes(x) as run:
            for bits in tasked.pairs:
                select(bits)
                logits = clip_logits(run(), len(labels))
                loss = task_loss(config, logits, labels)
                if teacher is None:
                    teacher = torch.softmax(logits.detach().float(), 1)
                else:
                    taught = functional.cross_entropy(logits.float(), teacher)
                    loss = loss + config.self_distillation * taught
                yield Pass(loss, logits, labels)

    rule = MeanOverUses(model, config.clamp, banks_of(model))
    return Update(config, model, config.lr, rule), losses


def banks_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of quantizers that have a row for each candidate."""
    return [
        parameter
        for quantizer in quantizers(model)
        if quantizer.bank.rows > 1
        for parameter in quantizer.parameters(recurse=False)
    ]
