"""MEBQAT (arXiv 2207.10188): as published, and scaled down.

Published (paper, section 5 and Table 6 of its appendix; batch 256, four tasks a batch):

    CIFAR-10, MobileNet-v2             SAT, first and last layer 8 bits, 600 epochs of AdamW
                                       at 5e-2 with a cosine
    CIFAR-10, pre-activation ResNet-20 DoReFa, first and last layer float, 400 epochs of AdamW
                                       at 1e-3, a tenth at 150, 250 and 350
    SVHN, 8-layer CNN                  DoReFa, first and last layer float, 100 epochs of AdamW
                                       at 1e-3, a tenth at 50, 75 and 90

Their DoReFa is Any-Precision's variant. Weights of 8 bits are then odd integers of nine bits,
which no integer module holds: such pairs are trained and evaluated, and refused at export.
"""

from dataclasses import replace

from qtool.settings.mebqat import MebqatConfig


def mebqat_mobilenet_v2_cifar() -> MebqatConfig:
    """MEBQAT as published, CIFAR-10 MobileNet-v2, SAT, {2..8, 16, FP} x {2..8, 16, FP}."""
    return MebqatConfig(
        name="mebqat_mobilenet_v2_cifar",
        model="mobilenet_v2_cifar",
        dataset="cifar10",
        augment=("crop4", "flip"),
        quantizer="sat",
        weight_bits=(8, 7, 6, 5, 4, 3, 2, 16, 32),
        activation_bits=(8, 7, 6, 5, 4, 3, 2, 16, 32),
        batch_size=256,
        optimizer="adamw",
        step_lr_factor=1.0,
        epochs=600,
        lr=5e-2,
    )


def mebqat_preact_resnet20_cifar() -> MebqatConfig:
    """MEBQAT as published, CIFAR-10 pre-activation ResNet-20, DoReFa, 1-bit pairs too."""
    bits = (7, 8, 6, 5, 4, 3, 2, 1, 16, 32)
    return MebqatConfig(
        name="mebqat_preact_resnet20_cifar",
        model="preact_resnet20",
        dataset="cifar10",
        augment=("crop4", "flip"),
        quantizer="any_precision",
        weight_bits=bits,
        activation_bits=bits,
        first_last_bits=32,
        batch_size=256,
        optimizer="adamw",
        schedule="multistep",
        milestones=(0.375, 0.625, 0.875),
        epochs=400,
        lr=1e-3,
    )


def mebqat_svhn() -> MebqatConfig:
    """MEBQAT as published, SVHN 8-layer CNN, DoReFa, 1-bit pairs too."""
    return replace(
        mebqat_preact_resnet20_cifar(),
        name="mebqat_svhn",
        model="svhn_cnn8",
        dataset="svhn",
        augment=(),
        milestones=(0.5, 0.75, 0.9),
        epochs=100,
    )


def mebqat_mobilenet_v2_small_cifar() -> MebqatConfig:
    """MEBQAT on CIFAR-10 and a small MobileNet-v2: 45 minutes on one core."""
    return MebqatConfig(
        name="mebqat_mobilenet_v2_small_cifar",
        model="mobilenet_v2_small",
        dataset="cifar10",
        augment=("crop4", "flip"),
        weight_bits=(8, 7, 6, 5, 4, 3, 2, 32),
        activation_bits=(8, 6, 5, 4, 3, 2, 32),
        shared_steps=False,
        float_epochs=10,
        float_lr=0.1,
        warmup=0.1,
        epochs=8,
        lr=0.04,
    )


def mebqat_fashion() -> MebqatConfig:
    """MEBQAT on the embedded Fashion-MNIST subset: minutes on two cores."""
    return MebqatConfig(
        name="mebqat_fashion",
        model="mobilenet_v2_small",
        dataset="fashion_mnist_12k",
        weight_bits=(8, 4, 3, 2, 32),
        activation_bits=(8, 4, 3, 2, 32),
        shared_steps=False,
        label_smoothing=0.1,
        warmup=0.1,
        float_epochs=8,
        epochs=5,
        lr=0.04,
    )
