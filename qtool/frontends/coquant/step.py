"""One step of joint training (CoQuant, arXiv 2103.01435, Algorithm 1): all precisions of B.

L = sum over b of L_b, from high to low, and one step of the optimizer along its gradient:

L_b = CE(z_b, labels)                          the highest precision, and without a teacher
L_b = CE(z_b, labels) + k KL(z_t || z_b)       a teacher t, k = `kl_weight`, 1 in the paper

z_b are the logits of the network at b, or of Swap(M_b, M_t, p); z_t those that t had in this
step, without a gradient: no teacher computes anything twice. The sum, not a mean, because that
is published, and because what belongs to one precision (BatchNorm, clipping value) then moves
as it would, were the precision trained alone.

A taught precision of Any-Precision has the second term only. The part that no bits change is
computed once (`qtool.nn.shared_prefix`); its BatchNorm is shared by all precisions.
"""

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from qtool.core.selection import LayerBits
from qtool.data.batches import Batch
from qtool.data.clips import clip_logits
from qtool.frontends.coquant.blocks import Blocks
from qtool.frontends.coquant.swap import Swapped, swap
from qtool.frontends.coquant.teacher import choose_teacher
from qtool.nn.control import select
from qtool.nn.shared_prefix import SharedPrefix
from qtool.settings.coquant import CoquantConfig
from qtool.settings.joint_methods import METHODS
from qtool.training.gradients import SumOverPasses
from qtool.training.losses import distillation_loss, task_loss
from qtool.training.update import Losses, Pass, Update


def joint_step(
    config: CoquantConfig, model: nn.Module, prefix: SharedPrefix, blocks: Blocks
) -> tuple[Update, Losses[Swapped[Batch]]]:
    """Return the step at all precisions of the recipe, and its losses.

    Args:
        config: the recipe.
        model: prepared for its precisions, with the BatchNorms of its method.
        prefix: of `model`.
        blocks: that are swapped.
    """
    method, loss_of = METHODS[config.method], _loss(config)

    def losses(swapped: Swapped[Batch]) -> Iterator[Pass]:
        x, labels = swapped.batch
        model.train()
        known: dict[LayerBits, Tensor] = {}
        with prefix.passes(x) as run:
            for bits in config.pairs():
                teacher = choose_teacher(method.teacher, bits, known, config.teacher_lambda)
                own = swapped.own.get(bits.activation, (True,) * len(blocks))
                select(model, swap(bits, teacher, blocks, own))
                logits = clip_logits(run(), len(labels))
                taught = None if teacher is None else known[teacher]
                known[bits] = logits.detach()
                yield Pass(loss_of(logits, labels, taught), logits, labels)

    return Update(config, model, config.lr, SumOverPasses()), losses


def _loss(config: CoquantConfig) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the loss of logits, labels, and the teacher's logits where there is one."""
    has_labels = METHODS[config.method].labels

    def loss(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        if teacher is None:
            return task_loss(config, logits, labels)
        taught = config.kl_weight * distillation_loss(logits, teacher, 1.0)
        return taught + task_loss(config, logits, labels) if has_labels else taught

    return loss
