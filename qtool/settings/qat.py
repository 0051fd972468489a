"""Settings of training at fixed bits."""

from dataclasses import dataclass

from qtool.settings.base import TrainConfig


@dataclass(frozen=True)
class QatConfig(TrainConfig):
    """Quantization-aware training at fixed bits; `activation_bits`, `weight_bits` stay empty.

    Args:
        bits: such as w4a4, with `first_last_bits` in the first and the last layer; a list such
            as w4a4,layer3.*=w4a8; or the path of a bits file, which names every layer or has
            a default (docs/bits.md).
        weights: float weights to start from, a file or a run directory; empty for none.
        float_epochs: of float training first, where there are no `weights`.
        float_lr: learning rate then.
        epochs: at the bits.
        lr: learning rate then, of the weights.
        teacher: also "float": the float network that training starts from.
        calibration_images: training images, the first ones, that activation grids start from.
    """

    frontend: str = "qat"
    activation_bits: tuple[int, ...] = ()
    weight_bits: int | tuple[int, ...] = ()
    bits: str = "w4a4"
    weights: str = ""
    float_epochs: int = 0
    float_lr: float = 0.1
    epochs: int = 10
    lr: float = 0.01
    calibration_images: int = 512
