"""Which higher precision teaches a precision: CoQuant (arXiv 2103.01435), Eq. 4.

t = argmin over t > b of  H(softmax(z_t)) + lambda (t - b)

H is the mean entropy over the batch of what t predicted for it, in nats: low where t is
confident. The distance t - b is in bits, so that lambda is in nats per bit; of equal sums the
nearer precision is taken. Eq. 4 itself is lost to us: this is our reading of the supplement,
by which lambda balances "the prediction confidence and the model distance".
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qtool.core.selection import LayerBits
from qtool.parallel.collectives import all_reduce_sum
from qtool.parallel.job import current
from qtool.settings.joint_methods import Teacher

# Logits (N, classes) of every precision that has seen the batch, the highest first.
Known = Mapping[LayerBits, Tensor]


def choose_teacher(
    kind: Teacher, student: LayerBits, known: Known, weight: float
) -> LayerBits | None:
    """Return the teacher of `student`; None: it has none.

    Args:
        kind: how it is chosen.
        student: lower than all of `known`.
        known: without gradients.
        weight: lambda, of "best".
    """
    if kind == "none" or not known:
        return None
    candidates = list(known)[::-1]  # the nearest first
    if kind == "next" or len(candidates) == 1:
        return candidates[0]
    entropies = torch.stack([entropy(known[bits]) for bits in candidates])
    # One choice for all processes of a job: they share the gradients.
    mean = all_reduce_sum(entropies) / current().size
    costs = [
        value + weight * (bits.activation - student.activation)
        for bits, value in zip(candidates, mean.tolist(), strict=True)
    ]
    return candidates[costs.index(min(costs))]


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of the softmax of `logits` (N, classes)."""
    logs = torch.log_softmax(logits.double(), 1)
    return -(logs.exp() * logs).sum(1).mean()
