"""Random torch networks, prepared for quantization; ``tests/fuzz_torch.py SEED``.

Each is a list of steps: layers, residual sums, gates, concatenations, pools, moves and
functions, everything that has an integer form, in any order.
"""

import random
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Step = Callable[[random.Random, int], nn.Module]


class Residual(nn.Module):
    """``x + body(x)``, with a ReLU behind it, in place or not, or none."""

    def __init__(self, body: nn.Module, kind: int) -> None:
        super().__init__()
        self.body, self.kind = body, kind
        self.relu = nn.ReLU(inplace=kind == 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y + x if self.kind % 2 else x + y
        return y if self.kind == 2 else self.relu(y)


class Gate(nn.Module):
    """Squeeze and excitation with one of three gates."""

    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        y = functional.adaptive_avg_pool2d(x, 1)
        y = self.gate(self.fc2(functional.relu(self.fc1(y))))
        return x * y


class Halves(nn.Module):
    """Split, work on one half, concatenate, shuffle."""

    def __init__(self, body: nn.Module, shuffle: bool) -> None:
        super().__init__()
        self.body, self.shuffle = body, shuffle

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        y = torch.cat([a, functional.relu6(self.body(b))], 1)
        return torch.channel_shuffle(y, 2) if self.shuffle else y


class Branches(nn.Module):
    """A concatenation of a convolution, a pool and the input."""

    def __init__(self, conv: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool = conv, pool

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(torch.cat([self.conv(x), self.pool(x), x], 1))


class PreActivation(nn.Module):
    """``x + conv(relu(norm(x)))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv(functional.relu(self.norm(x)))
        return y


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def conv(draw: random.Random, inputs: int, outputs: int = 0) -> nn.Module:
    outputs = outputs or inputs
    kernel = draw.choice([1, 3, 3, 5])
    groups = inputs if outputs == inputs and draw.random() < 0.3 else 1
    dilation = draw.choice([1, 1, 2])
    layer = nn.Conv2d(
        inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation,
        groups=groups, bias=draw.random() < 0.5,
    )  # fmt: skip
    norm = [nn.BatchNorm2d(outputs)] if draw.random() < 0.7 else []
    return nn.Sequential(layer, *norm)


def activation(draw: random.Random) -> nn.Module:
    return draw.choice(
        [
            nn.ReLU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid,
            nn.Identity, lambda: nn.LeakyReLU(0.1), lambda: nn.Hardtanh(-0.7, 1.3), nn.Tanh,
        ]
    )()  # fmt: skip


def step(draw: random.Random, channels: int) -> tuple[nn.Module, int]:
    """Return a module for (N, channels, H, W), and its result's channels."""
    kind = draw.randrange(12)
    if kind < 3:
        outputs = draw.choice([channels, 4, 6, 7])
        return nn.Sequential(conv(draw, channels, outputs), activation(draw)), outputs
    if kind == 3:
        return Residual(conv(draw, channels), draw.randrange(4)), channels
    if kind == 4:
        gate = draw.choice([nn.Sigmoid, nn.Hardsigmoid, nn.Hardtanh])()
        return Gate(channels, gate), channels
    if kind == 5 and channels % 2 == 0:
        return Halves(conv(draw, channels // 2), draw.random() < 0.5), channels
    if kind == 6 and channels < 12:
        pool = draw.choice([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)])
        return Branches(conv(draw, channels, 3), pool), 2 * channels + 3
    if kind == 7:
        return PreActivation(channels), channels
    if kind == 8:
        return draw.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 1, 1)]), channels
    if kind == 9:
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2)), channels
    if kind == 10:
        return Residual(
            nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(channels, channels, 3)), 0
        ), channels
    kept = max(channels - 1, 2)
    return Call(lambda x: functional.relu(x[:, :kept])), min(kept, channels)


class FuzzNet(nn.Module):
    """A network of `seed`, for images (3, `size`, `size`)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.size = draw.choice([8, 9, 12])
        channels = draw.choice([4, 5, 6])
        self.stem = conv(draw, 3, channels)
        self.steps, halved = nn.ModuleList(), 0
        for _ in range(draw.randint(2, 7)):
            module, after = step(draw, channels)
            if any(getattr(m, "kernel_size", 0) == 2 for m in module.modules()):
                halved += not isinstance(module, nn.Sequential)
                if halved > 2:
                    continue
            self.steps.append(module)
            channels = after
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for module in self.steps:
            x = module(x)
        y: Tensor = self.fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))
        return y


if __name__ == "__main__":
    print(FuzzNet(int(sys.argv[1])))
