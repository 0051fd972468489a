"""Settings of post-training quantization."""

from dataclasses import dataclass

from qtool.settings.base import Config


@dataclass(frozen=True)
class PtqConfig(Config):
    """Post-training quantization: a float network becomes a run without training.

    Args:
        weights: file with the float weights, or a run directory; must be set.
        bits: uniform bits that ``model.safetensors`` is corrected for, such as w8a8.
        presets: further uniform bits that get a correction of their own.
        glue: how grids of residual, pooling and output tensors are found: mse, minmax or
            percentile.
        percentile: share of values, in percent, inside a percentile grid.
        correction: of every layer's output: affine (scale and bias), bias or none.
        calibration_images: training images, the first ones, that grids come from.
        correction_images: the first ones of these, that corrections come from.
        compare_images: test images on which choices of glue are compared; 0 for all.
    """

    frontend: str = "ptq"
    activation_bits: tuple[int, ...] = (8, 6, 4, 3, 2)
    weight_bits: tuple[int, ...] = (8, 6, 4, 3, 2)
    asymmetric: bool = True
    weights: str = ""
    bits: str = "w8a8"
    presets: tuple[str, ...] = ("w8a8", "w6a6", "w4a8", "w4a4")
    glue: str = "mse"
    percentile: float = 99.99
    correction: str = "affine"
    calibration_images: int = 1024
    correction_images: int = 256
    compare_images: int = 1000
