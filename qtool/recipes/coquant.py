"""CoQuant (arXiv 2103.01435) and its baselines: as published, and scaled down.

Published (supplement, Table 2; B = {8, 6, 4, 2}; --set method=... makes a baseline of each):

                             p_1  lambda  alpha: first  rate  decay  batch  rate  falls at
    CIFAR-10, ResNet-18      0.9  0.001           8     0.1   1e-4     128  0.1   150 225 270
    CIFAR-10, MobileNet-v2   0.5  0.001           8     0.01  4e-5     128  0.01  82 122
    ImageNet, ResNet-18      0.7  0.001           8     0.1   6e-5    2880  0.01  30 60 85 95
    ActivityNet, ResNet-18   0.5  0.001           4     0.01  5e-4      72  0.01  cosine
    ActivityNet, ResNet-50   0.7  0.0001          4     0.1   5e-4      72  0.01  cosine
    Mini-Kinetics, ResNet-18 0.7  0.001           2     0.1   1e-4     576  0.01  cosine

350 epochs of ResNet-18 and 160 of MobileNet-v2 on CIFAR-10, from scratch; the others start
from float weights (--set weights=FILE). What the supplement leaves open is ours: 100 epochs
where it gives none, weights decay as alpha does, 8 bits in the first and the last layer.

The scaled ones start from float weights and train for a few epochs. At two bits modified
DoReFa makes 0 or -1/2 of all smaller weights, from which those networks did not recover: their
weights are Double Rounding's, in every method (--set weight_quantizer=sat: as published).

``qat_pact_...`` train one precision alone (--set bits=w4a4) with the same quantizers: what
each precision is compared with.
"""

from dataclasses import replace

from qtool.settings.coquant import CoquantConfig
from qtool.settings.qat import QatConfig

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def coquant_resnet18_cifar() -> CoquantConfig:
    """CoQuant as published, CIFAR-10 ResNet-18."""
    return CoquantConfig(
        name="coquant_resnet18_cifar",
        model="resnet18_cifar",
        dataset="cifar10",
        augment=("crop4", "flip"),
        swap_start=0.9,
        pact_init=8.0,
        pact_lr=0.1,
        alpha_weight_decay=1e-4,
        weight_decay=1e-4,
        batch_size=128,
        lr=0.1,
        epochs=350,
        schedule="multistep",
        milestones=(150 / 350, 225 / 350, 270 / 350),
    )


def coquant_mobilenet_v2_cifar() -> CoquantConfig:
    """CoQuant as published, CIFAR-10 MobileNet-v2."""
    return replace(
        coquant_resnet18_cifar(),
        name="coquant_mobilenet_v2_cifar",
        model="mobilenet_v2_cifar",
        swap_start=0.5,
        pact_lr=0.01,
        alpha_weight_decay=4e-5,
        weight_decay=4e-5,
        lr=0.01,
        epochs=160,
        milestones=(82 / 160, 122 / 160),
    )


def coquant_resnet18_imagenet() -> CoquantConfig:
    """CoQuant as published, ImageNet ResNet-18: --set weights=FILE of float weights."""
    return CoquantConfig(
        name="coquant_resnet18_imagenet",
        model="resnet18",
        dataset="imagefolder",
        mean=_MEAN,
        std=_STD,
        augment=("resized_crop", "flip"),
        workers=8,
        swap_start=0.7,
        pact_init=8.0,
        pact_lr=0.1,
        alpha_weight_decay=6e-5,
        weight_decay=6e-5,
        batch_size=2880,
        float_epochs=100,
        lr=0.01,
        epochs=100,
        schedule="multistep",
        milestones=(0.30, 0.60, 0.85, 0.95),
        calibration_images=64,
        norm_batches=20,
    )


def coquant_resnet18_activitynet() -> CoquantConfig:
    """CoQuant as published, ActivityNet-v1.3 ResNet-18: --set weights=FILE."""
    return replace(
        coquant_resnet18_imagenet(),
        name="coquant_resnet18_activitynet",
        dataset="activitynet",
        swap_start=0.5,
        pact_init=4.0,
        pact_lr=0.01,
        alpha_weight_decay=5e-4,
        weight_decay=5e-4,
        batch_size=72,
        schedule="cosine",
        calibration_images=8,
    )


def coquant_resnet50_activitynet() -> CoquantConfig:
    """CoQuant as published, ActivityNet-v1.3 ResNet-50: --set weights=FILE."""
    return replace(
        coquant_resnet18_activitynet(),
        name="coquant_resnet50_activitynet",
        model="resnet50",
        swap_start=0.7,
        teacher_lambda=1e-4,
        pact_lr=0.1,
    )


def coquant_resnet18_minikinetics() -> CoquantConfig:
    """CoQuant as published, Mini-Kinetics ResNet-18: --set weights=FILE."""
    return replace(
        coquant_resnet18_activitynet(),
        name="coquant_resnet18_minikinetics",
        dataset="kinetics",
        swap_start=0.7,
        pact_init=2.0,
        pact_lr=0.1,
        alpha_weight_decay=1e-4,
        weight_decay=1e-4,
        batch_size=576,
    )


def coquant_mobilenet_v2_small_cifar() -> CoquantConfig:
    """CoQuant on CIFAR-10 and a small MobileNet-v2: 45 minutes on one core."""
    return CoquantConfig(
        name="coquant_mobilenet_v2_small_cifar",
        model="mobilenet_v2_small",
        dataset="cifar10",
        augment=("crop4", "flip"),
        weight_quantizer="double_rounding",
        float_epochs=10,
        float_lr=0.1,
        warmup=0.1,
        epochs=8,
        lr=0.02,
        norm_batches=8,
    )


def coquant_fashion() -> CoquantConfig:
    """CoQuant on the embedded Fashion-MNIST subset: minutes on two cores."""
    return replace(
        coquant_mobilenet_v2_small_cifar(),
        name="coquant_fashion",
        dataset="fashion_mnist_12k",
        augment=("flip",),
        label_smoothing=0.1,
        float_epochs=8,
        epochs=5,
    )


def qat_pact_mobilenet_v2_small_cifar() -> QatConfig:
    """CIFAR-10 and a small MobileNet-v2 at one precision: what CoQuant's are compared with."""
    return _alone(coquant_mobilenet_v2_small_cifar())


def qat_pact_resnet18_cifar() -> QatConfig:
    """CIFAR-10 ResNet-18 at one precision, as CoQuant's individual ones."""
    return _alone(coquant_resnet18_cifar())


def qat_pact_resnet18_activitynet() -> QatConfig:
    """ActivityNet ResNet-18 at one precision: Table 5, also --set weight_quantizer=dorefa."""
    return _alone(coquant_resnet18_activitynet())


def _alone(joint: CoquantConfig) -> QatConfig:
    """Return the recipe that trains a precision of `joint` alone, as `joint` does together."""
    config = QatConfig(
        joint.name.replace("coquant", "qat_pact"), joint.model, joint.dataset, bits="w4a4"
    )
    same = {name: getattr(joint, name) for name in _SAME}
    return replace(config, **same)


# Everything that is not of several precisions.
_SAME = (
    "mean", "std", "augment", "workers", "batch_size", "label_smoothing", "quantizer",
    "weight_quantizer", "pact_init", "pact_lr", "alpha_weight_decay", "weight_decay", "warmup",
    "schedule", "milestones", "float_epochs", "float_lr", "epochs", "lr", "norm_batches",
    "calibration_images",
)  # fmt: skip
