"""CIFAR-10's published binary format, written by the tests themselves."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from qtool.data.cifar10 import TEST, TRAIN


def write_cifar10(folder: Path, images: int = 20) -> Path:
    """Write random images, `images` a file; return `folder`."""
    rng = np.random.default_rng(0)
    labels = np.arange(images, dtype=np.uint8) % 10
    for name in (*TRAIN, *TEST):
        _write(folder / name, labels, rng.integers(0, 256, (images, 3072), np.uint8))
    return folder


def write_photographs(folder: Path, packed: Path, images: int) -> Path:
    """Write the first `images` real ones from `packed`, 100 x 100 images in a picture."""
    known = json.loads((packed / "labels.json").read_text())
    for source, names in (("data_batch_1", TRAIN), ("test_batch", TEST)):
        with Image.open(packed / f"{source}.webp") as picture:
            tiles = np.asarray(picture.convert("RGB")).reshape(100, 32, 100, 32, 3)
        pixels = tiles.transpose(0, 2, 4, 1, 3).reshape(10_000, 3072)[:images]
        labels = np.array(known[source]["labels"][:images], np.uint8)
        for name in names:
            _write(folder / name, labels, pixels)
    return folder


def _write(path: Path, labels: np.ndarray, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.concatenate([labels[:, None], pixels], 1).tobytes())
