"""CIFAR ResNet-20, 32, 44 and 56 (He et al. 2016, section 4.2), shortcuts without weights.

Parameter names are those of akamaster/pytorch_resnet_cifar10, so that its published weights
load (91.73 % and 93.39 % top-1 with 20 and 56 layers).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.models.resnet import BasicBlock


class PadShortcut(nn.Module):
    """Every second pixel, and as many zero channels before as behind (option A).

    Args:
        extra: zero channels on either side.
    """

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + 2 * extra, H / 2, W / 2)."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))


def pad_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """`PadShortcut` where the shape changes."""
    return None if stride == 1 and inputs == outputs else PadShortcut((outputs - inputs) // 2)


class CifarResNet(nn.Module):
    """Three layers of `blocks` blocks each, 16, 32 and 64 wide."""

    def __init__(self, blocks: int, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _layer(16, 16, blocks, 1)
        self.layer2 = _layer(16, 32, blocks, 2)
        self.layer3 = _layer(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = functional.adaptive_avg_pool2d(x, 1)
        y: Tensor = self.linear(torch.flatten(x, 1))
        return y


def _layer(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (BasicBlock(outputs, outputs, 1, pad_shortcut) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, pad_shortcut), *rest)


def resnet20(in_channels: int = 3, classes: int = 10) -> CifarResNet:
    """ResNet-20, 0.27 M parameters."""
    return CifarResNet(3, in_channels, classes)


def resnet32(in_channels: int = 3, classes: int = 10) -> CifarResNet:
    """ResNet-32, 0.46 M parameters."""
    return CifarResNet(5, in_channels, classes)


def resnet44(in_channels: int = 3, classes: int = 10) -> CifarResNet:
    """ResNet-44, 0.66 M parameters."""
    return CifarResNet(7, in_channels, classes)


def resnet56(in_channels: int = 3, classes: int = 10) -> CifarResNet:
    """ResNet-56, 0.85 M parameters."""
    return CifarResNet(9, in_channels, classes)
