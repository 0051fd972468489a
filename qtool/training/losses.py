"""The loss that a recipe asks for: cross-entropy, and what a teacher adds to it.

L = (1 - w) CE(softmax(z), labels) + w T^2 KL(softmax(t / T) || softmax(z / T))

with the network's logits z, the teacher's t, w = `distill_weight` and T = `temperature`
(Hinton et al., arXiv 1503.02531, section 2: T^2 keeps the gradients' size).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.data.clips import clip_logits
from qtool.settings.base import TrainConfig

# The loss of a batch's logits, (N, classes).
LogitsLoss = Callable[[Tensor], Tensor]
LoadTeacher = Callable[[tuple[int, ...], int], nn.Module]


def task_loss(config: TrainConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the recipe's label smoothing.

    Args:
        config: the recipe.
        logits: (N, classes), of any floating dtype.
        labels: (N,).
    """
    return functional.cross_entropy(
        logits.float(), labels, label_smoothing=config.label_smoothing
    )


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || network), a mean over the batch; both logits (N, classes)."""
    wanted = functional.log_softmax(teacher.float() / temperature, 1)
    got = functional.log_softmax(logits.float() / temperature, 1)
    divergence = functional.kl_div(got, wanted, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class Objective:
    """What training minimises.

    Args:
        config: the recipe.
        load_teacher: makes the teacher from the shape of an image and the number of classes;
            None: there is none.
    """

    def __init__(self, config: TrainConfig, load_teacher: LoadTeacher | None = None) -> None:
        self.config, self._load = config, load_teacher
        self._teacher: nn.Module | None = None

    def on(self, x: Tensor, labels: Tensor) -> LogitsLoss:
        """Return the loss of logits for images `x`, whatever the bits that they come from.

        The teacher sees `x` once, at the first call. Of clips, whose frames are `x`, it has
        one answer each, as the network has.
        """
        taught: list[Tensor] = []

        def loss(logits: Tensor) -> Tensor:
            hard = task_loss(self.config, logits, labels)
            if self._load is None:
                return hard
            if not taught:
                logits_of_frames = self._teach(x, logits.shape[1])
                taught.append(clip_logits(logits_of_frames, len(labels)))
            share = self.config.distill_weight
            soft = distillation_loss(logits, taught[0], self.config.temperature)
            return (1 - share) * hard + share * soft

        return loss

    @torch.no_grad()
    def _teach(self, x: Tensor, classes: int) -> Tensor:
        if self._teacher is None and self._load is not None:
            made = self._load(tuple(x.shape[1:]), classes)
            self._teacher = made.to(x.device).requires_grad_(False).eval()
        # It is the user's, and may write to its images in place.
        logits: Tensor = self._teacher(x.clone()) if self._teacher is not None else x
        return logits
