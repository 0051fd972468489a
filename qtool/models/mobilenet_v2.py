"""MobileNet-v2 (Sandler et al. 2018): inverted residuals with linear bottlenecks.

Parameter names are torchvision's, so that its published ImageNet weights load.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtool.models.blocks import conv_norm


@dataclass(frozen=True)
class Stage:
    """`blocks` inverted residuals of `channels` outputs; the first has `stride`."""

    expansion: int
    channels: int
    blocks: int
    stride: int


IMAGENET_STAGES = (
    Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 3, 2), Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1), Stage(6, 160, 3, 2), Stage(6, 320, 1, 1),
)  # fmt: skip
# As MEBQAT (arXiv 2207.10188) has it for 32 pixels: no stride in the stem and in stage two.
CIFAR_STAGES = (IMAGENET_STAGES[0], Stage(6, 24, 2, 1), *IMAGENET_STAGES[2:])
# For 28 to 32 pixels: 14x14 after the stem, 4x4 at the end.
SMALL_STAGES = (Stage(1, 16, 1, 1), Stage(4, 32, 2, 2), Stage(4, 64, 2, 2), Stage(4, 96, 1, 1))


def _conv_bn_relu(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return conv_norm(inputs, outputs, kernel, stride, groups, activation=nn.ReLU6)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; added to the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [_conv_bn_relu(inputs, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.use_res_connect = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.use_res_connect else y


class MobileNetV2(nn.Module):
    """MobileNet-v2 of any stage table.

    Args:
        stages: the inverted residual table.
        in_channels: image channels.
        stem: channels of the first convolution.
        last: channels before pooling.
        classes: number of logits.
        stem_stride: stride of the first convolution.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        in_channels: int,
        stem: int,
        last: int,
        classes: int,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn_relu(in_channels, stem, 3, stem_stride)]
        channels = stem
        for stage in stages:
            for block in range(stage.blocks):
                stride = stage.stride if block == 0 else 1
                layers.append(
                    InvertedResidual(channels, stage.channels, stride, stage.expansion)
                )
                channels = stage.channels
        layers.append(_conv_bn_relu(channels, last, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, classes)."""
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, 1)
        y: Tensor = self.classifier(torch.flatten(x, 1))
        return y


def mobilenet_v2(in_channels: int = 3, classes: int = 1000) -> MobileNetV2:
    """The ImageNet network, 300,774,272 MACs at 224 px."""
    return MobileNetV2(IMAGENET_STAGES, in_channels, 32, 1280, classes)


def mobilenet_v2_cifar(in_channels: int = 3, classes: int = 10) -> MobileNetV2:
    """MEBQAT's network for CIFAR-10, 87,976,448 MACs at 32 px."""
    return MobileNetV2(CIFAR_STAGES, in_channels, 32, 1280, classes, stem_stride=1)


def mobilenet_v2_small(in_channels: int = 1, classes: int = 10) -> MobileNetV2:
    """The same construction for 28 to 32 px: 20 layers, 3.1 M MACs at 28 px."""
    return MobileNetV2(SMALL_STAGES, in_channels, 16, 384, classes)
