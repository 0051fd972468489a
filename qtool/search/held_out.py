"""Images that results on jointly trained runs are measured with: neither test nor search."""

from dataclasses import replace

import numpy as np

from qtool.core.errors import UserError
from qtool.data.images import DataSet, Source
from qtool.data.part import Part
from qtool.settings.base import TrainConfig

# Of the images that a network was trained on, one in so many is held out at most.
_SHARE = 5


def hold_out(data: DataSet, config: TrainConfig, count: int) -> tuple[DataSet, Source]:
    """Return `data` without some of its training images, and these.

    They are drawn with the recipe's seed: among those that `train_images` kept from training
    where these are enough, so that the network has not seen them either; else among all that
    it was trained on.

    Args:
        data: of the run.
        config: its recipe.
        count: of images; of those trained on a fifth at most.

    Raises:
        UserError: too few training images.
    """
    total, draws = len(data.train), np.random.default_rng(config.seed)
    used = min(config.train_images or total, total)
    if total - used >= count:
        unseen = draws.choice(np.arange(used, total), count, replace=False)
        return data, Part(data.train, np.sort(unseen))
    order, count = draws.permutation(used), min(count, used // _SHARE)
    if not count:
        raise UserError(
            f"data set {data.name}: {used} training images are too few to hold some out, "
            f"expected {_SHARE} or more"
        )
    held, rest = np.sort(order[:count]), np.sort(order[count:])
    return replace(data, train=Part(data.train, rest)), Part(data.train, held)
