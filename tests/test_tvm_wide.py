"""Random networks of many channels and larger images: tiles, blocks and overlaps in TVM."""

import random

import pytest
from kernel_calls import cpu_for, target_of
from programs import Net, exact
from test_fuzz import UNITS

from qtool.core.dialect import FloatGemm


def step(net: Net, draw: random.Random, tensors: list[str]) -> str:
    """Add an operator or a block of them to the network."""
    x = draw.choice([*tensors[-2:], tensors[-1], tensors[-1]])
    channels, height, width = net.shapes[x]
    kind = draw.choice(
        ["conv", "conv", "conv", "point", "depth", "add", "act", "gate", "move"]
    )
    stride = draw.choice([1, 1, 2]) if min(height, width) > 3 else 1
    if kind == "conv":
        outputs = draw.choice([channels, 16, 24, 32, 48, 64, 70, 96, 130])
        groups = draw.choice([g for g in (1, 1, 1, 2, 4, 8) if not (channels | outputs) % g])
        kernel, dilation = draw.choice([1, 3, 3, 3, 5]), draw.choice([1, 1, 1, 2])
        pad = kernel // 2 * dilation
        pads = (pad, pad, pad, draw.choice([pad, pad, pad + 1]))
        attributes = {"strides": (stride, stride), "pads": pads, "dilations": (dilation,) * 2}
        return net.conv(x, outputs, kernel, groups=groups, **attributes)
    if kind == "point":
        return net.conv(x, draw.randint(1, 140), 1)
    if kind == "depth":
        kernel = draw.choice([3, 3, 5, 7])
        return net.conv(x, channels, kernel, groups=channels, strides=(stride, stride))
    if kind == "add":
        a, b = x, net.conv(x, channels, draw.choice([1, 3]))
        total = net.add(*((a, b) if draw.random() < 0.5 else (b, a)))
        return net.lookup(total) if draw.random() < 0.3 else total
    if kind == "act":
        return draw.choice([net.lookup, net.hardswish])(net.conv(x, channels, 1))
    if kind == "gate":
        return net.mul(x, net.lookup(net.conv(net.average(x), channels, 1)))
    if channels % 2 == 0 and draw.random() < 0.4:
        return net.shuffle(x)
    return draw.choice(
        [lambda: net.pool(x, 3), lambda: net.concat(x, x), lambda: net.pad(x)]
    )()


def wide(seed: int) -> Net:
    """A network whose first steps are at most 40 x 40."""
    draw = random.Random(seed)
    size = draw.choice([(7, 7), (14, 14), (28, 28), (15, 40), (33, 9), (56, 5)])
    net = Net(
        (draw.choice([1, 3, 3, 4, 16, 40]), *size),
        raw=draw.random() < 0.3,
        seed=seed,
        wild=True,
    )
    tensors = [net.input]
    for _ in range(draw.randint(2, 7)):
        tensors.append(step(net, draw, tensors))
    last = net.reshape(net.average(tensors[-1]), net.shapes[tensors[-1]][0])
    if draw.random() < 0.3:
        net.gemm(last, draw.randint(1, 70), FloatGemm)
    elif draw.random() < 0.8:
        net.gemm(last, draw.randint(1, 130))
    return net


@pytest.mark.parametrize("seed", range(8))
def test_wide_networks(seed: int) -> None:
    exact(wide(seed), batch=1 + seed % 2)


@pytest.mark.parametrize("unit", UNITS)
def test_wide_networks_on_other_units(unit: str) -> None:
    cpu_for(unit)
    exact(wide(100), target=target_of(unit))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1000, 1150))
def test_wide_networks_sweep(seed: int) -> None:
    exact(wide(seed), batch=1 + seed % 2)


@pytest.mark.nightly
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("seed", range(1200, 1215))
def test_wide_networks_on_other_units_sweep(seed: int, unit: str) -> None:
    cpu_for(unit)
    exact(wide(seed), target=target_of(unit))
