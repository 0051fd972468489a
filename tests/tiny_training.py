"""A tiny run on random images: milliseconds a step, but with all that a run can have."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from qtool.core.progress import Progress, Silent
from qtool.core.selection import Selection
from qtool.data.images import DataSet, Images
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.override import override
from qtool.training.evaluation import recalibrate_norms
from qtool.training.ingredients import make_batches, plain_phase
from qtool.training.phases import run_phase

SHAPE, CLASSES, STEPS = (1, 8, 8), 4, 6
BASE = ("batch_size=8", "checkpoint_minutes=0", "norm_batches=2")


def tiny_data() -> DataSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (STEPS * 8, *SHAPE), np.uint8)
    images = Images(pixels, rng.integers(0, CLASSES, len(pixels)))
    return DataSet("tiny", images, images.head(16), CLASSES)


def plain_net(in_channels: int = 1, classes: int = CLASSES) -> nn.Module:
    """Return a network without Dropout, whose numbers differ from process to process."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    )  # fmt: skip


def tiny_net(dropout: float = 0.2) -> nn.Module:
    """Return a quantized network with BatchNorm and Dropout, always the same one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip
    spec = QuantSpec(activation_bits=(4,), weight_bits=(4,))
    return prepare(model.to(memory_format=torch.channels_last), spec)


def tiny_config(*settings: str) -> MetaMixConfig:
    return override(MetaMixConfig("tiny", "none", "none"), [*BASE, *settings])


def tiny_run(folder: Path, *settings: str, resume: bool = False) -> Run:
    return Run.create(folder, tiny_config(*settings), tiny_data(), resume, force=False)


def train_tiny(run: Run, progress: Progress | None = None, resume: bool = False) -> nn.Module:
    """Train two epochs; leaves ``model.safetensors`` in `run`."""
    from qtool.nn.control import calibrate, select

    config, model = run.config, tiny_net()
    assert isinstance(config, MetaMixConfig)
    batches = make_batches(config, tiny_data())
    calibrate(model, next(iter(batches.epoch(0)))[0])
    select(model, Selection())
    phase = plain_phase("tiny", config, model, 2, 0.05)
    run_phase(phase, run, batches, progress or Silent(), resume)
    recalibrate_norms(model, batches, config.norm_batches)
    run.save_weights(Stage.MODEL, model.state_dict())
    return model
