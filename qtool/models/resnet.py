"""ResNet-18, 34 and 50 (He et al. 2016) with torchvision's parameter names."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qtool.models.blocks import conv_norm

# (input channels, output channels, stride) -> the way around a block; None is the identity
Shortcut = Callable[[int, int, int], nn.Module | None]


def projection(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """1x1 convolution and BatchNorm where the shape changes (He et al.'s option B)."""
    if stride == 1 and inputs == outputs:
        return None
    return conv_norm(inputs, outputs, 1, stride, activation=None)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut."""

    expansion = 1

    def __init__(
        self, inputs: int, outputs: int, stride: int, shortcut: Shortcut = projection
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y + shortcut)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as torchvision's "v1.5"), 1x1 to four times the width."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y + shortcut)
        return out


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """Four layers of `block`, 64 to 512 wide.

    Args:
        block: what the layers repeat.
        blocks: how often, layer by layer.
        in_channels: image channels.
        classes: number of logits.
        small_images: for 32 px, the stem is a 3x3 convolution; else 7x7 and MaxPool, both
            with stride 2.
    """

    def __init__(
        self,
        block: Block,
        blocks: tuple[int, int, int, int],
        in_channels: int,
        classes: int,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, 64, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        grow = block.expansion
        self.layer1 = _layer(block, 64, 64, blocks[0], 1)
        self.layer2 = _layer(block, 64 * grow, 128, blocks[1], 2)
        self.layer3 = _layer(block, 128 * grow, 256, blocks[2], 2)
        self.layer4 = _layer(block, 256 * grow, 512, blocks[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * grow, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        y: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return y


def _layer(block: Block, inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (block(width * block.expansion, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(inputs, width, stride), *rest)


def resnet18(in_channels: int = 3, classes: int = 1000) -> ResNet:
    """ResNet-18, 1,814,073,344 MACs at 224 px."""
    return ResNet(BasicBlock, (2, 2, 2, 2), in_channels, classes)


def resnet18_cifar(in_channels: int = 3, classes: int = 10) -> ResNet:
    """ResNet-18 for 32 px as in CoQuant (arXiv 2103.01435), 555 M MACs."""
    return ResNet(BasicBlock, (2, 2, 2, 2), in_channels, classes, small_images=True)


def resnet34(in_channels: int = 3, classes: int = 1000) -> ResNet:
    """ResNet-34, 3.66 G MACs at 224 px."""
    return ResNet(BasicBlock, (3, 4, 6, 3), in_channels, classes)


def resnet50(in_channels: int = 3, classes: int = 1000) -> ResNet:
    """ResNet-50, 4.09 G MACs at 224 px."""
    return ResNet(Bottleneck, (3, 4, 6, 3), in_channels, classes)


def resnet101(in_channels: int = 3, classes: int = 1000) -> ResNet:
    """ResNet-101, 7.80 G MACs at 224 px."""
    return ResNet(Bottleneck, (3, 4, 23, 3), in_channels, classes)
