"""Tiny few-shot data and networks: seconds of training, but real in every link."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from qtool.data.images import DataSet, Images
from qtool.settings.episodes import PnConfig
from qtool.settings.override import override

SHAPE = (1, 8, 8)
# Two epochs of 4 steps; statistics at 16 pairs.
TINY = (
    "weight_bits=8,4,2,32", "activation_bits=8,4,2,32", "epochs=2", "episodes=4", "ways=4",
    "shots=3", "queries=2", "batch_size=20", "norm_batches=2", "calibration_images=40",
    "test_ways=3", "test_queries=4", "test_episodes=12", "transductive_episodes=3",
    "test_bits=w2a2,fp", "checkpoint_minutes=0", "device=cpu",
)  # fmt: skip


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


def embedding(in_channels: int = 1) -> nn.Module:
    """8x8 images to 16 numbers, three quantized layers."""

    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.MaxPool2d(2),
        )  # fmt: skip

    return nn.Sequential(block(in_channels, 8), block(8, 16), block(16, 16), nn.Flatten())


class Residual(nn.Module):
    """An embedding whose tensors between layers have grids, and whose norm is no layer's."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU()
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.flat = nn.MaxPool2d(4), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.second(self.relu(self.norm(x)))
        y: Tensor = self.flat(self.pool(x + self.third(self.relu(x))))
        return y


def pn_config(*settings: str) -> PnConfig:
    """Return the recipe of a tiny run, with other `settings`."""
    config = PnConfig("tiny", "fewshot_sets:embedding", "fewshot_sets:tiny_fewshot")
    return override(config, [*TINY, *settings])


def write_support(folder: Path, images: Images) -> Path:
    """Write grey pictures as CLASS/NUMBER.png."""
    for number, label in enumerate(images.labels):
        place = folder / f"class{label}" / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.pixels[number, 0]).save(place)
    return folder
