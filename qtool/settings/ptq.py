"""Settings of post-training quantization."""

from dataclasses import dataclass
from typing import Any

from qtool.core.errors import UserError
from qtool.core.selection import parse_uniform
from qtool.settings.base import Config
from qtool.settings.setting import items, setting

# Settings `glue` and `correction`: what there is to choose from.
GLUE_CHOICES = ("mse", "minmax", "percentile")
CORRECTIONS = ("affine", "bias", "none")


def _uniform(name: str, value: Any) -> None:
    """Refuse bits that are not like w4a8."""
    for bits in items(value):
        if parse_uniform(bits) is None:
            raise UserError(f"recipe setting {name}: got {bits!r}, expected such as w4a8")


@dataclass(frozen=True)
class PtqConfig(Config):
    """Post-training quantization: a float network becomes a run without training."""

    frontend: str = "ptq"
    activation_bits: tuple[int, ...] = (8, 6, 4, 3, 2)
    weight_bits: tuple[int, ...] = (8, 6, 4, 3, 2)
    asymmetric: bool = True
    weights: str = setting("", "float weights: FILE or RUN; must be set")
    bits: str = setting(
        "w8a8", "uniform bits that model.safetensors is corrected for",
        check=_uniform, looks="such as w4a8",
    )  # fmt: skip
    presets: tuple[str, ...] = setting(
        ("w8a8", "w6a6", "w4a8", "w4a4"), "further uniform bits that get their own correction",
        check=_uniform, looks="such as w4a8",
    )  # fmt: skip
    glue: str = setting(
        "mse", "how grids between layers and of outputs are found",
        choices=GLUE_CHOICES,
    )  # fmt: skip
    percentile: float = setting(99.99, "percent of values inside a percentile grid", 50, 100)
    correction: str = setting(
        "affine", "of every layer's output; affine: scale and bias",
        choices=CORRECTIONS,
    )  # fmt: skip
    calibration_images: int = setting(1024, "training images, the first ones, for grids", 1)
    correction_images: int = setting(
        256, "calibration images, the first ones, for corrections", 1
    )
    compare_images: int = setting(1000, "test images to compare choices of glue on; 0: all", 0)
