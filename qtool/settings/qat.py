"""Settings of training at fixed bits."""

from dataclasses import dataclass

from qtool.settings.base import ACTIVATIONS, WEIGHTS, TrainConfig
from qtool.settings.setting import setting


@dataclass(frozen=True)
class QatConfig(TrainConfig):
    """Quantization-aware training at fixed bits, uniform or layer by layer."""

    frontend: str = "qat"
    activation_bits: tuple[int, ...] = setting((), "stays empty: bits says it", *ACTIVATIONS)
    weight_bits: int | tuple[int, ...] = setting((), "stays empty: bits says it", *WEIGHTS)
    bits: str = setting(
        "w4a4", "uniform bits, or of every layer: see docs/bits.md",
        looks="w4a4; w4a4,layer3.*=w4a8; FILE",
    )  # fmt: skip
    weights: str = setting("", "float weights to start from: FILE or RUN")
    float_epochs: int = setting(0, "epochs of float training, without weights", 0)
    float_lr: float = setting(0.1, "learning rate of float training", 0)
    epochs: int = setting(10, "epochs at the bits", 0)
    lr: float = setting(0.01, "learning rate of the weights at the bits", 0)
    calibration_images: int = setting(
        512, "training images, the first ones, for first grids", 1
    )
