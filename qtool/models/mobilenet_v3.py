"""MobileNet-v3-large and -small (Howard et al. 2019, arXiv 1905.02244).

Parameter names, and BatchNorm's eps and momentum, are torchvision's, so that its published
ImageNet weights load and compute the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from qtool.models.blocks import Activation, conv_norm

_norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
_conv = partial(conv_norm, norm=_norm)


@dataclass(frozen=True)
class Row:
    """One inverted residual, as a row of the paper's Tables 1 and 2."""

    kernel: int
    hidden: int
    outputs: int
    squeeze: bool
    activation: Activation
    stride: int


_RE, _HS = nn.ReLU, nn.Hardswish
LARGE = (
    Row(3, 16, 16, False, _RE, 1),
    Row(3, 64, 24, False, _RE, 2), Row(3, 72, 24, False, _RE, 1),
    Row(5, 72, 40, True, _RE, 2), Row(5, 120, 40, True, _RE, 1), Row(5, 120, 40, True, _RE, 1),
    Row(3, 240, 80, False, _HS, 2), Row(3, 200, 80, False, _HS, 1),
    Row(3, 184, 80, False, _HS, 1), Row(3, 184, 80, False, _HS, 1),
    Row(3, 480, 112, True, _HS, 1), Row(3, 672, 112, True, _HS, 1),
    Row(5, 672, 160, True, _HS, 2), Row(5, 960, 160, True, _HS, 1),
    Row(5, 960, 160, True, _HS, 1),
)  # fmt: skip
SMALL = (
    Row(3, 16, 16, True, _RE, 2),
    Row(3, 72, 24, False, _RE, 2), Row(3, 88, 24, False, _RE, 1),
    Row(5, 96, 40, True, _HS, 2), Row(5, 240, 40, True, _HS, 1), Row(5, 240, 40, True, _HS, 1),
    Row(5, 120, 48, True, _HS, 1), Row(5, 144, 48, True, _HS, 1),
    Row(5, 288, 96, True, _HS, 2), Row(5, 576, 96, True, _HS, 1),
    Row(5, 576, 96, True, _HS, 1),
)  # fmt: skip


def multiple_of_8(channels: int) -> int:
    """Round to the nearest multiple of 8, at most 10 % down."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SqueezeExcitation(nn.Module):
    """Scale every channel by a gate in [0, 1] that reads all channels' averages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = multiple_of_8(channels // 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> same."""
        squeezed = self.activation(self.fc1(self.avgpool(x)))
        gate: Tensor = self.scale_activation(self.fc2(squeezed))
        return gate * x


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, gate, project 1x1; added to the input where shapes agree."""

    def __init__(self, inputs: int, row: Row) -> None:
        super().__init__()
        hidden, act = row.hidden, row.activation
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(_conv(inputs, hidden, 1, activation=act))
        layers.append(_conv(hidden, hidden, row.kernel, row.stride, hidden, activation=act))
        if row.squeeze:
            layers.append(SqueezeExcitation(hidden))
        layers.append(_conv(hidden, row.outputs, 1, activation=None))
        self.block = nn.Sequential(*layers)
        self.use_res_connect = row.stride == 1 and inputs == row.outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.block(x)
        return x + y if self.use_res_connect else y


class MobileNetV3(nn.Module):
    """MobileNet-v3 of any table of rows; `last` is the width of the hidden linear layer."""

    def __init__(self, rows: Sequence[Row], last: int, in_channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(in_channels, 16, 3, 2, activation=nn.Hardswish)]
        channels = 16
        for row in rows:
            layers.append(InvertedResidual(channels, row))
            channels = row.outputs
        layers.append(_conv(channels, 6 * channels, 1, activation=nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, last),
            nn.Hardswish(inplace=True),
            nn.Dropout(0.2),
            nn.Linear(last, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, classes)."""
        x = self.avgpool(self.features(x))
        y: Tensor = self.classifier(torch.flatten(x, 1))
        return y


def mobilenet_v3_large(in_channels: int = 3, classes: int = 1000) -> MobileNetV3:
    """The ImageNet network, 5.5 M parameters."""
    return MobileNetV3(LARGE, 1280, in_channels, classes)


def mobilenet_v3_small(in_channels: int = 3, classes: int = 1000) -> MobileNetV3:
    """The ImageNet network, 2.5 M parameters."""
    return MobileNetV3(SMALL, 1024, in_channels, classes)
