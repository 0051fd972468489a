"""Prototypical networks (Snell et al., arXiv 1703.05175): a class is the mean of its images.

c_k = mean of the embeddings of class k's support images (Eq. 1)
p(y = k | x) = softmax over k of -d(f(x), c_k), d the squared Euclidean distance (Eq. 2)
"""

import torch
from torch import Tensor


def prototypes(embedded: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Return the mean embedding (ways, D) of every class.

    Args:
        embedded: (N, D).
        labels: (N,) int64, each of 0 to `ways` - 1 at least once.
        ways: number of classes.
    """
    member = torch.nn.functional.one_hot(labels, ways).to(embedded.dtype)
    return (member.T @ embedded) / member.sum(0)[:, None]


def prototype_logits(embedded: Tensor, centres: Tensor) -> Tensor:
    """Return minus the squared distances (N, ways) from `centres` (ways, D).

    Computed from differences: in ||e||^2 - 2 e.c + ||c||^2 large numbers cancel.

    Args:
        embedded: (N, D).
        centres: prototypes.
    """
    return -(embedded[:, None] - centres[None]).square().sum(2)
