"""What several families are made of: a convolution, its BatchNorm, its activation."""

from collections.abc import Callable

from torch import nn

Norm = Callable[[int], nn.Module]
Activation = type[nn.ReLU] | type[nn.ReLU6] | type[nn.Hardswish]


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    *,
    activation: Activation | None = nn.ReLU,
    norm: Norm = nn.BatchNorm2d,
    padding: int | None = None,
    bias: bool = False,
) -> nn.Sequential:
    """Return convolution (``.0``), norm (``.1``) and, unless None, activation (``.2``).

    Args:
        inputs: channels it reads.
        outputs: channels it makes.
        kernel: height and width.
        stride: of both.
        groups: of the channels.
        activation: its class; it computes in place.
        norm: makes the norm of that many channels.
        padding: on each side; None keeps the image's size at stride 1.
        bias: whether the convolution has its own.
    """
    pad = kernel // 2 if padding is None else padding
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=bias),
        norm(outputs),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)
