"""An embedding with a linear layer behind it: classes by their prototypes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Prototyped(nn.Module):
    """``head(embedding(x))``.

    Args:
        embedding: images to vectors (N, D).
        shape: (C, H, W) of an image.
        classes: number of logits.
    """

    def __init__(self, embedding: nn.Module, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.head = nn.Linear(_width(embedding, shape), classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        y: Tensor = self.head(self.embedding(x))
        return y


@torch.no_grad()
def _width(embedding: nn.Module, shape: Sequence[int]) -> int:
    """Return D."""
    was_training = embedding.training
    width = embedding.eval()(torch.zeros(1, *shape)).shape[1]
    embedding.train(was_training)
    return int(width)
