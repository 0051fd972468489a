"""MobileNet-v1 (Howard et al. 2017, arXiv 1704.04861): depthwise separable convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.models.blocks import conv_norm

# output channels and stride of every depthwise and pointwise pair (Table 1)
PAIRS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1),
    (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 (``.0``), then 1x1 (``.1``)."""
    return nn.Sequential(
        conv_norm(inputs, inputs, 3, stride, groups=inputs), conv_norm(inputs, outputs, 1)
    )


class MobileNetV1(nn.Module):
    """The paper's body: a 3x3 stem with stride 2, 13 separable pairs, one linear layer."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        layers = [conv_norm(in_channels, 32, 3, stride=2)]
        channels = 32
        for outputs, stride in PAIRS:
            layers.append(_separable(channels, outputs, stride))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, classes)."""
        x = functional.adaptive_avg_pool2d(self.features(x), 1)
        y: Tensor = self.classifier(torch.flatten(x, 1))
        return y


def mobilenet_v1(in_channels: int = 3, classes: int = 1000) -> MobileNetV1:
    """The ImageNet network, 4.2 M parameters."""
    return MobileNetV1(in_channels, classes)
