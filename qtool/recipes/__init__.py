"""Recipes by name: functions that return a frozen config."""

from collections.abc import Callable
from dataclasses import replace

from qtool.core.errors import unknown_name
from qtool.recipes import generic
from qtool.recipes.coquant import (
    coquant_fashion,
    coquant_mobilenet_v2_cifar,
    coquant_mobilenet_v2_small_cifar,
    coquant_resnet18_activitynet,
    coquant_resnet18_cifar,
    coquant_resnet18_imagenet,
    coquant_resnet18_minikinetics,
    coquant_resnet50_activitynet,
    qat_pact_mobilenet_v2_small_cifar,
    qat_pact_resnet18_activitynet,
    qat_pact_resnet18_cifar,
)
from qtool.recipes.mebqat import (
    mebqat_fashion,
    mebqat_mobilenet_v2_cifar,
    mebqat_mobilenet_v2_small_cifar,
    mebqat_preact_resnet20_cifar,
    mebqat_svhn,
)
from qtool.recipes.mebqat_fewshot import (
    fomaml_omniglot_short,
    mebqat_maml_miniimagenet,
    mebqat_maml_omniglot,
    mebqat_maml_omniglot_short,
    mebqat_pn_miniimagenet,
    mebqat_pn_miniimagenet_short,
    mebqat_pn_omniglot,
    mebqat_pn_omniglot_short,
    pn_miniimagenet_short,
    pn_omniglot_short,
)
from qtool.recipes.metamix import (
    metamix_fashion,
    metamix_mobilenet_v2,
    metamix_mobilenet_v2_cifar,
    metamix_mobilenet_v2_imagenette,
    metamix_mobilenet_v3,
    metamix_resnet18,
    metamix_resnet20_cifar,
)
from qtool.settings.base import Config
from qtool.settings.ptq import PtqConfig
from qtool.settings.qat import QatConfig


def ptq_resnet20_cifar() -> PtqConfig:
    """CIFAR-10 ResNet-20 without training: --set weights=FILE of float weights."""
    return PtqConfig(
        name="ptq_resnet20_cifar",
        model="resnet20",
        dataset="cifar10",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def ptq_resnet56_cifar() -> PtqConfig:
    """CIFAR-10 ResNet-56 without training: --set weights=FILE of float weights."""
    return replace(ptq_resnet20_cifar(), name="ptq_resnet56_cifar", model="resnet56")


def qat_resnet20_cifar() -> QatConfig:
    """CIFAR-10 ResNet-20 at W4A4, 8-bit ends: --set weights=FILE of float weights."""
    images = ptq_resnet20_cifar()
    return QatConfig(
        name="qat_resnet20_cifar",
        model=images.model,
        dataset=images.dataset,
        mean=images.mean,
        std=images.std,
        asymmetric=True,
        augment=("crop4", "flip"),
        weight_decay=1e-4,
        float_epochs=160,
        epochs=8,
        teacher="float",
        distill_weight=0.9,
    )


def qat_mobilenet_v2_cifar() -> QatConfig:
    """CIFAR-10 MobileNet-v2 at W4A4, 8-bit ends: float training first, or weights=FILE."""
    return replace(
        qat_resnet20_cifar(),
        name="qat_mobilenet_v2_cifar",
        model="mobilenet_v2_cifar",
        mean=(),
        std=(),
        calibration_images=128,
    )


def qat_mobilenet_v2_small_cifar() -> QatConfig:
    """CIFAR-10 and a small MobileNet-v2 at W4A4: what MEBQAT's pairs are compared with."""
    images = mebqat_mobilenet_v2_small_cifar()
    return QatConfig(
        name="qat_mobilenet_v2_small_cifar",
        model=images.model,
        dataset=images.dataset,
        augment=images.augment,
        float_epochs=images.float_epochs,
        float_lr=images.float_lr,
        warmup=images.warmup,
        epochs=images.epochs,
        lr=images.lr,
        teacher="float",
    )


def qat_mobilenet_v2() -> QatConfig:
    """ImageNet MobileNet-v2 at W4A4, 8-bit ends: --set weights=FILE, such as torchvision's."""
    return replace(
        qat_mobilenet_v2_cifar(),
        name="qat_mobilenet_v2",
        model="mobilenet_v2",
        dataset="imagefolder",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augment=("resized_crop", "flip"),
        workers=8,
        batch_size=256,
        weight_decay=4e-5,
        epochs=90,
        lr=0.04,
        warmup=0.05,
        teacher="",
        calibration_images=64,
        norm_batches=200,
    )


def qat_fashion() -> QatConfig:
    """Float training, then W4A4, on the embedded Fashion-MNIST subset: minutes."""
    return QatConfig(
        name="qat_fashion",
        model="mobilenet_v2_small",
        dataset="fashion_mnist_12k",
        label_smoothing=0.1,
        warmup=0.1,
        float_epochs=8,
        epochs=5,
        lr=0.04,
        teacher="float",
    )


# Of any network and any images: `qtool.recipes.generic.complete` says what they need.
GENERIC: dict[str, Callable[[], Config]] = {
    "coquant": generic.coquant,
    "mebqat": generic.mebqat,
    "metamix": generic.metamix,
    "ptq": generic.ptq,
    "qat": generic.qat,
}
RECIPES: dict[str, Callable[[], Config]] = {
    "coquant_fashion": coquant_fashion,
    "coquant_mobilenet_v2_cifar": coquant_mobilenet_v2_cifar,
    "coquant_mobilenet_v2_small_cifar": coquant_mobilenet_v2_small_cifar,
    "coquant_resnet18_activitynet": coquant_resnet18_activitynet,
    "coquant_resnet18_cifar": coquant_resnet18_cifar,
    "coquant_resnet18_imagenet": coquant_resnet18_imagenet,
    "coquant_resnet18_minikinetics": coquant_resnet18_minikinetics,
    "coquant_resnet50_activitynet": coquant_resnet50_activitynet,
    "fomaml_omniglot_short": fomaml_omniglot_short,
    "mebqat_fashion": mebqat_fashion,
    "mebqat_maml_miniimagenet": mebqat_maml_miniimagenet,
    "mebqat_maml_omniglot": mebqat_maml_omniglot,
    "mebqat_maml_omniglot_short": mebqat_maml_omniglot_short,
    "mebqat_mobilenet_v2_cifar": mebqat_mobilenet_v2_cifar,
    "mebqat_mobilenet_v2_small_cifar": mebqat_mobilenet_v2_small_cifar,
    "mebqat_pn_miniimagenet": mebqat_pn_miniimagenet,
    "mebqat_pn_miniimagenet_short": mebqat_pn_miniimagenet_short,
    "mebqat_pn_omniglot": mebqat_pn_omniglot,
    "mebqat_pn_omniglot_short": mebqat_pn_omniglot_short,
    "mebqat_preact_resnet20_cifar": mebqat_preact_resnet20_cifar,
    "mebqat_svhn": mebqat_svhn,
    "metamix_fashion": metamix_fashion,
    "metamix_mobilenet_v2": metamix_mobilenet_v2,
    "metamix_mobilenet_v2_cifar": metamix_mobilenet_v2_cifar,
    "metamix_mobilenet_v2_imagenette": metamix_mobilenet_v2_imagenette,
    "metamix_mobilenet_v3": metamix_mobilenet_v3,
    "metamix_resnet18": metamix_resnet18,
    "metamix_resnet20_cifar": metamix_resnet20_cifar,
    "pn_miniimagenet_short": pn_miniimagenet_short,
    "pn_omniglot_short": pn_omniglot_short,
    "ptq_resnet20_cifar": ptq_resnet20_cifar,
    "ptq_resnet56_cifar": ptq_resnet56_cifar,
    "qat_fashion": qat_fashion,
    "qat_mobilenet_v2": qat_mobilenet_v2,
    "qat_mobilenet_v2_cifar": qat_mobilenet_v2_cifar,
    "qat_mobilenet_v2_small_cifar": qat_mobilenet_v2_small_cifar,
    "qat_pact_mobilenet_v2_small_cifar": qat_pact_mobilenet_v2_small_cifar,
    "qat_pact_resnet18_activitynet": qat_pact_resnet18_activitynet,
    "qat_pact_resnet18_cifar": qat_pact_resnet18_cifar,
    "qat_resnet20_cifar": qat_resnet20_cifar,
}


def load_recipe(name: str) -> Config:
    """Return the config of recipe `name`."""
    known = {**GENERIC, **RECIPES}
    if name not in known:
        raise unknown_name("recipe", name, known)
    return known[name]()
