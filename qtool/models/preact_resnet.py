"""Pre-activation ResNet-20 for CIFAR (He et al. 2016, arXiv 1603.05027).

BatchNorm and ReLU come before each convolution, so the first BatchNorm of a block reads a sum
and cannot be folded into a convolution. Where the shape changes, the shortcut is a 1x1
convolution with BatchNorm that reads the pre-activated tensor. Any-Precision (arXiv
1911.07346) and MEBQAT (arXiv 2207.10188) use it five times as wide, 80 to 320 channels; their
released code lacks the ReLU after the last BatchNorm, which He et al. and we have.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.models.resnet import projection


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice; added to the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        active = self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(active)
        y = self.relu(self.bn2(self.conv1(active)))
        out: Tensor = self.conv2(y) + shortcut
        return out


class PreActResNet(nn.Module):
    """Three layers of `blocks` blocks each, `width` to 4 * `width` channels."""

    def __init__(self, blocks: int, width: int, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.layer1 = _layer(width, width, blocks, 1)
        self.layer2 = _layer(width, 2 * width, blocks, 2)
        self.layer3 = _layer(2 * width, 4 * width, blocks, 2)
        self.bn = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = functional.adaptive_avg_pool2d(self.relu(self.bn(x)), 1)
        y: Tensor = self.fc(torch.flatten(x, 1))
        return y


def _layer(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (PreActBlock(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(PreActBlock(inputs, outputs, stride), *rest)


def preact_resnet20(in_channels: int = 3, classes: int = 10) -> PreActResNet:
    """The papers' network, 80 to 320 channels."""
    return PreActResNet(3, 80, in_channels, classes)


def preact_resnet20_narrow(in_channels: int = 3, classes: int = 10) -> PreActResNet:
    """He et al.'s own width, 16 to 64 channels."""
    return PreActResNet(3, 16, in_channels, classes)
