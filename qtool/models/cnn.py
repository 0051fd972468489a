"""Plain convolutional networks: 8 layers for SVHN, 4 and 5 layers for few-shot learning.

- SVHN: DoReFa-Net's model A (arXiv 1606.06160) as Any-Precision and MEBQAT (arXiv 2207.10188)
  use it, on images resized to 40x40.
- Few-shot: 3x3 convolution with bias, BatchNorm, ReLU and 2x2 MaxPool, four times (Vinyals et
  al. 2016). MEBQAT-MAML (five layers) puts a linear layer on top and keeps BatchNorm's gamma
  at 1, as MAML (arXiv 1703.03400) does; MEBQAT-PN (four layers) returns the embedding.
"""

import torch
from torch import Tensor, nn

from qtool.models.blocks import Norm, conv_norm


class SvhnCnn(nn.Module):
    """Seven convolutions and a linear layer; the first and last convolution have no norm."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(in_channels, 48, 5), nn.ReLU(inplace=True)),
            nn.MaxPool2d(2),
            conv_norm(48, 64, 3),
            conv_norm(64, 64, 3),
            nn.MaxPool2d(2),
            conv_norm(64, 128, 3, padding=0),
            conv_norm(128, 128, 3),
            conv_norm(128, 128, 3, padding=0),
            nn.Dropout(0.5),
            nn.Sequential(nn.Conv2d(128, 512, 5, bias=False), nn.ReLU(inplace=True)),
        )
        self.classifier = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, 40, 40) -> (N, classes)."""
        y: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return y


def _shift_only(channels: int) -> nn.BatchNorm2d:
    """BatchNorm whose gamma stays 1: only beta is learned."""
    norm = nn.BatchNorm2d(channels)
    norm.weight.requires_grad_(False)
    return norm


def _four_blocks(in_channels: int, width: int, norm: Norm) -> nn.Sequential:
    """Four convolutions, each halving the image: (N, C, H, W) -> (N, width, H/16, W/16)."""
    layers: list[nn.Module] = []
    for inputs in (in_channels, width, width, width):
        layers += [conv_norm(inputs, width, 3, norm=norm, bias=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


class Embedding(nn.Module):
    """The 4-layer network of prototypical networks; it has no classes."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.features = _four_blocks(in_channels, width, nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, width * (H / 16) * (W / 16))."""
        return torch.flatten(self.features(x), 1)


class FewShotClassifier(nn.Module):
    """The 5-layer network of MAML.

    Args:
        in_channels: image channels.
        width: channels of every convolution.
        pixels: pixels that are left of an image after four halvings.
        classes: number of logits ("ways").
    """

    def __init__(self, in_channels: int, width: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.features = _four_blocks(in_channels, width, _shift_only)
        self.classifier = nn.Linear(width * pixels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, classes)."""
        y: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return y


def svhn_cnn8(in_channels: int = 3, classes: int = 10) -> SvhnCnn:
    """The 8-layer network for 40x40 images."""
    return SvhnCnn(in_channels, classes)


def cnn4_omniglot(in_channels: int = 1) -> Embedding:
    """28x28 images to 64 numbers."""
    return Embedding(in_channels, 64)


def cnn4_miniimagenet(in_channels: int = 3) -> Embedding:
    """84x84 images to 1600 numbers."""
    return Embedding(in_channels, 64)


def cnn5_omniglot(in_channels: int = 1, classes: int = 20) -> FewShotClassifier:
    """28x28 images, 64 wide, 20-way."""
    return FewShotClassifier(in_channels, 64, 1, classes)


def cnn5_miniimagenet(in_channels: int = 3, classes: int = 5) -> FewShotClassifier:
    """84x84 images, 32 wide, 5-way."""
    return FewShotClassifier(in_channels, 32, 25, classes)
