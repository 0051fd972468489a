"""Tiny few-shot data."""

import numpy as np

from qtool.data.images import DataSet, Images

SHAPE = (1, 8, 8)


def patterns(classes: int, images: int, seed: int) -> Images:
    """Return pictures of a pattern a class, each with noise and lightness of its own."""
    rng = np.random.default_rng(seed)
    means = rng.uniform(70, 185, (classes, 1, *SHAPE))
    noise = rng.normal(0, 15, (classes, images, *SHAPE))
    light = rng.uniform(-70, 70, (classes, images, 1, 1, 1))
    pixels = np.clip(means + noise + light, 0, 255).astype(np.uint8)
    labels = np.repeat(np.arange(classes), images)
    return Images(pixels.reshape(-1, *SHAPE), labels)


def tiny_fewshot() -> DataSet:
    """Return 12 classes to train on and 6 others, of 10 images each."""
    return DataSet("tiny", patterns(12, 10, 0), patterns(6, 10, 1), 12, unseen=True)
