"""MetaMix (arXiv 2311.06798): as published on ImageNet, and scaled down.

Published (paper, Tables 1 and 8, "Training details"; the released code where the paper is
silent): float weights to start from; one epoch of bit-meta, one of bit-meta and bit-search in
turn, fine-tuning up to 140 (MobileNets) or 90 epochs (ResNet-18) in all; weights of 4 bits,
first and last layer 8/8; Adam with learning rate 1e-4 in the first two epochs, then 5e-4 with
a cosine; weight decay 5e-6, gradient norm at most 10, batch 256; soft cross-entropy towards a
ResNet-101 (``--set teacher=FILE``, torchvision's names).

Ours: the released code shifts inputs behind h-swish by 3/8, which is no integer multiple of a
step; here such inputs have an integer zero point that fits their range.
"""

from dataclasses import replace

from qtool.settings.metamix import MetaMixConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def metamix_fashion() -> MetaMixConfig:
    """MetaMix on the embedded Fashion-MNIST subset: minutes on two cores."""
    return MetaMixConfig(
        name="metamix_fashion",
        model="mobilenet_v2_small",
        dataset="fashion_mnist_12k",
        search_lambda=5.0,
        alpha_lr=0.02,
        finetune_epochs=10,
        finetune_lr=0.1,
    )


def metamix_mobilenet_v2() -> MetaMixConfig:
    """MetaMix as published, ImageNet MobileNet-v2: weights=FILE, teacher=FILE; 5.3G."""
    return MetaMixConfig(
        name="metamix_mobilenet_v2",
        model="mobilenet_v2",
        dataset="imagefolder",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augment=("resized_crop", "flip"),
        workers=8,
        batch_size=256,
        activation_bits=(8, 4, 3),
        label_smoothing=0.0,
        optimizer="adam",
        weight_decay=5e-6,
        step_lr_factor=1.0,
        clip_norm=10.0,
        warmup=0.0,
        meta_epochs=1,
        meta_lr=1e-4,
        search_epochs=1,
        search_lambda=1.0,
        alpha_lr=1e-4,
        alpha_init=1e-3,
        finetune_epochs=138,
        finetune_lr=5e-4,
        norm_batches=200,
        teacher_model="resnet101",
        distill_weight=1.0,
        temperature=1.0,
    )


def metamix_mobilenet_v3() -> MetaMixConfig:
    """MetaMix as published, ImageNet MobileNet-v3-large: weights=FILE, teacher=FILE; 3.79G."""
    return replace(
        metamix_mobilenet_v2(),
        name="metamix_mobilenet_v3",
        model="mobilenet_v3_large",
        asymmetric=True,
        search_lambda=4.0,
    )


def metamix_resnet18() -> MetaMixConfig:
    """MetaMix as published, ImageNet ResNet-18: weights=FILE, teacher=FILE; 32.86G."""
    return replace(
        metamix_mobilenet_v2(),
        name="metamix_resnet18",
        model="resnet18",
        activation_bits=(8, 4, 2),
        search_lambda=0.4,
        finetune_epochs=88,
    )


def metamix_resnet20_cifar() -> MetaMixConfig:
    """MetaMix on CIFAR-10 ResNet-20: --set weights=FILE of float weights."""
    return MetaMixConfig(
        name="metamix_resnet20_cifar",
        model="resnet20",
        dataset="cifar10",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        asymmetric=True,
        augment=("crop4", "flip"),
        # Layers of equal cost: candidates near each other, or uniform bits are the best ones.
        activation_bits=(5, 4, 3),
        label_smoothing=0.0,
        weight_decay=1e-4,
        float_epochs=160,
        meta_lr=0.01,
        search_lambda=1.0,
        alpha_lr=0.05,
        finetune_epochs=5,
        finetune_lr=0.01,
        teacher="float",
        distill_weight=0.9,
    )


def metamix_mobilenet_v2_cifar() -> MetaMixConfig:
    """MetaMix on CIFAR-10 MobileNet-v2: float training first, or --set weights=FILE."""
    return replace(
        metamix_resnet20_cifar(),
        name="metamix_mobilenet_v2_cifar",
        model="mobilenet_v2_cifar",
        mean=(),
        std=(),
        activation_bits=(6, 5, 4, 3),
        search_lambda=1.0,
    )


def metamix_mobilenet_v2_imagenette() -> MetaMixConfig:
    """MetaMix on Imagenette at 160 px, MobileNet-v2: float training first, or weights=FILE."""
    return replace(
        metamix_mobilenet_v2(),
        name="metamix_mobilenet_v2_imagenette",
        dataset="imagenette",
        image_size=160,
        workers=2,
        batch_size=64,
        optimizer="sgd",
        weight_decay=1e-4,
        step_lr_factor=0.1,
        float_epochs=80,
        float_lr=0.05,
        warmup=0.1,
        meta_epochs=2,
        meta_lr=0.01,
        search_epochs=2,
        alpha_lr=0.02,
        finetune_epochs=20,
        finetune_lr=0.01,
        norm_batches=40,
        teacher="float",
        teacher_model="",
        distill_weight=0.9,
        temperature=4.0,
    )
