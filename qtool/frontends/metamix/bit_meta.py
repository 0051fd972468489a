"""Bit-meta (MetaMix, arXiv 2311.06798, Eq. 1): weights that serve every candidate.

min over W of the mean over b of L(W; every layer at b), with weights in floating point and one
activation step a candidate. Where weights have several candidates too (paper, "Extension to
weight mixed-precision"), b runs over the pairs, and weights are quantized. The released code
backpropagates only the last candidate's loss; this follows the paper's mean.
"""

from collections.abc import Iterator

from torch import nn

from qtool.core.selection import LayerBits, Selection
from qtool.data.batches import Batch
from qtool.data.clips import clip_logits
from qtool.nn.control import select
from qtool.nn.shared_prefix import SharedPrefix
from qtool.settings.base import Config, TrainConfig
from qtool.training.gradients import MeanOverPasses
from qtool.training.losses import Objective
from qtool.training.update import Losses, Pass, Update


def bit_meta(
    config: TrainConfig, lr: float, model: nn.Module, objective: Objective
) -> tuple[Update, Losses[Batch]]:
    """Return the step on the mean loss over the candidate bits (Eq. 1), and these losses.

    Args:
        config: names the candidates and how a step is done.
        lr: learning rate of the weights.
        model: prepared for these candidates.
        objective: of every candidate.
    """
    shared, branches = SharedPrefix(model), branches_of(config)
    has_weights = not branches[0].is_float

    def losses(batch: Batch) -> Iterator[Pass]:
        x, labels = batch
        model.train()
        loss = objective.on(x, labels)
        with shared.passes(x) as run:
            for bits in branches:
                select(model, Selection(default=bits), weights=has_weights)
                logits = clip_logits(run(), len(labels))
                yield Pass(loss(logits), logits, labels)

    return Update(config, model, lr, MeanOverPasses(len(branches))), losses


def branches_of(config: Config) -> list[LayerBits]:
    """Return what bit-meta runs over: activation bits on float weights, or pairs."""
    weights = config.weight_bits
    several = () if isinstance(weights, int) or len(weights) == 1 else weights
    return [LayerBits(w, a) for w in several or (32,) for a in config.activation_bits]
