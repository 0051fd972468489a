"""Recipes for any network and any images: ``qtool train ptq --model mynet:net --data DIR``.

The network is ``--model`` (a name, or package.module:factory), the images are ``--data DIR``
(train/CLASS/* and val/CLASS/*, data set ``imagefolder``), ``--data package.module:factory``,
or those of ``--set dataset=NAME``. Nothing is assumed of either:

    mean, std         none: the network sees pixel / 255, as behind torchvision's ToTensor;
                      say what its weights were trained with: --set mean=... --set std=...
    augment           none: --set augment=flip, crop4,flip or resized_crop,flip, where a
                      mirrored or cut image still is one of its class
    batch_size        64, and 128 images whose inner tensors are kept for first grids (qat) or
                      corrections (ptq): half of what the recipes for 32 pixels take
    asymmetric        yes: signed inputs (h-swish, SiLU, no activation) get a zero point
    weights           --set weights=FILE|RUN; without them, qat, metamix, mebqat and coquant
                      train the float network first (`float_epochs`)

Training is fine-tuning of a network that has learned: small learning rates with a cosine,
towards the logits of the float network itself (``teacher=float``; mebqat's float task) or of
higher precisions (coquant).
"""

from dataclasses import replace
from pathlib import Path

from qtool.core.errors import UserError
from qtool.settings.base import ConfigT
from qtool.settings.coquant import CoquantConfig
from qtool.settings.mebqat import MebqatConfig
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.ptq import PtqConfig
from qtool.settings.qat import QatConfig

FOLDER_DATA = "imagefolder"
_MODEL = "a network: --model NAME (qtool list models) or --model package.module:factory"
_DATA = (
    "images: --data DIR with train/CLASS/* and val/CLASS/*, --data package.module:factory, or "
    "--set dataset=NAME (qtool list datasets)"
)


def ptq() -> PtqConfig:
    """Any network, any images, without training: --model, --data, --set weights=FILE."""
    return PtqConfig(
        name="ptq",
        model="",
        dataset="",
        batch_size=64,
        calibration_images=512,
        correction_images=128,
    )


def qat() -> QatConfig:
    """Any network, any images, W4A4 and 8-bit ends: --model, --data, --set weights=FILE."""
    return QatConfig(
        name="qat",
        model="",
        dataset="",
        asymmetric=True,
        augment=(),
        batch_size=64,
        weight_decay=1e-4,
        float_epochs=30,
        float_lr=0.05,
        warmup=0.05,
        epochs=10,
        lr=0.01,
        teacher="float",
        distill_weight=0.9,
        calibration_images=128,
    )


def metamix() -> MetaMixConfig:
    """Any network, any images, bits to search for: --model, --data, --set weights=FILE."""
    return MetaMixConfig(
        name="metamix",
        model="",
        dataset="",
        asymmetric=True,
        augment=(),
        batch_size=64,
        label_smoothing=0.0,
        weight_decay=1e-4,
        float_epochs=30,
        float_lr=0.05,
        meta_lr=0.01,
        alpha_lr=0.02,
        finetune_epochs=10,
        finetune_lr=0.01,
        teacher="float",
        distill_weight=0.9,
    )


def mebqat() -> MebqatConfig:
    """Any network, any images, every pair of bits: --model, --data, --set weights=FILE."""
    return MebqatConfig(
        name="mebqat",
        model="",
        dataset="",
        asymmetric=True,
        shared_steps=False,
        augment=(),
        batch_size=64,
        weight_decay=1e-4,
        float_epochs=30,
        float_lr=0.05,
        warmup=0.05,
        epochs=10,
        lr=0.01,
        norm_batches=8,
        calibration_images=128,
    )


def coquant() -> CoquantConfig:
    """Any network, any images, several precisions: --model, --data, --set weights=FILE."""
    return CoquantConfig(
        name="coquant",
        model="",
        dataset="",
        asymmetric=True,
        weight_quantizer="double_rounding",
        augment=(),
        batch_size=64,
        weight_decay=1e-4,
        float_epochs=30,
        float_lr=0.05,
        warmup=0.05,
        epochs=10,
        lr=0.01,
        norm_batches=8,
        calibration_images=128,
    )


def complete(config: ConfigT, data: Path | str | None) -> ConfigT:
    """Return a recipe that has a network and images; a folder of images needs no other name.

    Args:
        config: the recipe, with the user's settings.
        data: the value of --data.

    Raises:
        UserError: one or both are missing; says how to give them.
    """
    if not config.dataset and isinstance(data, Path):
        config = replace(config, dataset=FOLDER_DATA)
    needs = [*[_MODEL] * (not config.model), *[_DATA] * (not config.dataset)]
    if needs:
        raise UserError(f"recipe {config.name} needs {'; and '.join(needs)}")
    return config
