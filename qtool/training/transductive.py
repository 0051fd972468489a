"""Accuracy with BatchNorm's statistics of the test batches themselves ("transductive").

So does the released code of MEBQAT (arXiv 2207.10188) evaluate: its networks stay in training
mode. What an image is taken for then depends on the images beside it, and cannot be deployed,
where BatchNorm is folded; the number is there to compare with published ones.
"""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from qtool.core.errors import UserError
from qtool.data.batches import to_batch
from qtool.data.clips import clip_logits
from qtool.data.images import Source
from qtool.nn.norm_rows import active_norms
from qtool.training.evaluation import device_of


def follow_batches(model: nn.Module) -> None:
    """Let BatchNorms normalise with each batch's own statistics; nothing is drawn at random.

    In training mode a network changes: statistics, and steps that are kept in bounds.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.eval()


@torch.no_grad()
def transductive_accuracy(model: nn.Module, images: Source, batch: int) -> float:
    """Return top-1 accuracy in percent at the bits that are selected in `model`.

    Args:
        model: prepared; stays as it is.
        images: of the test set, in their order.
        batch: images a batch, or a few more where they do not divide: none has fewer.

    Raises:
        UserError: a network without BatchNorm.
    """
    if not active_norms(model):
        raise UserError("the network has no BatchNorm, so no statistics of test batches")
    twin, right = copy.deepcopy(model), 0
    follow_batches(twin)
    for rows in np.array_split(np.arange(len(images)), max(1, len(images) // batch)):
        x, labels = to_batch(images, rows)
        logits = clip_logits(twin(x.to(device_of(twin))).cpu(), len(labels))
        right += int((logits.argmax(1) == labels).sum())
    return 100 * right / len(images)
