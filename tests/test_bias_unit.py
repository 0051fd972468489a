"""A bias has the same resolution at few bits: evaluation says what batch statistics say."""

import numpy as np
import pytest
import torch
from exact import traced
from torch import Tensor, nn

from passes.pipelines import lower
from qtool.core.dialect import Conv, read_program
from qtool.core.selection import LayerBits, Selection
from qtool.nn.control import calibrate, quant_layers, select
from qtool.nn.ops.on_grid import values
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.training.evaluation import fresh_statistics

BITS = (8, 4, 3, 2)


def network() -> nn.Sequential:
    """A depthwise layer, whose sums of few bits take few values, between pointwise ones."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for groups, kernel in ((1, 1), (16, 3), (1, 1)):
        parts += [
            nn.Conv2d(16 if parts else 3, 16, kernel, 1, kernel // 2, 1, groups, False),
            nn.BatchNorm2d(16), nn.ReLU(),
        ]  # fmt: skip
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def prepared(quantizer: str, bits: int, images: Tensor) -> nn.Module:
    """Return the network at `bits`, with the statistics of `images`."""
    model = prepare(network(), QuantSpec(BITS, BITS, quantizer=quantizer), (3, 16, 16))
    calibrate(model, images)
    select(model, Selection(default=LayerBits(bits, bits)))
    model.train()
    with torch.no_grad(), fresh_statistics(model.modules()):
        model(images)
    return model


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("quantizer", ["lsq", "sat", "double_rounding"])
def test_evaluation_says_what_batch_statistics_say(quantizer: str, bits: int) -> None:
    images = torch.rand(64, 3, 16, 16)
    model = prepared(quantizer, bits, images)
    reader = quant_layers(model)[2].input_quant
    seen: list[Tensor] = []
    reader.register_forward_hook(lambda _module, _given, result: seen.append(values(result)))
    with torch.no_grad():
        for training in (True, False):
            model.train(training)
            model(images)
    training, evaluation = seen
    # A bias in units of the narrow codes moves 8 to 40 % of them at two bits.
    assert float((training != evaluation).float().mean()) < 0.02


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_held_as_large_as_cpus_add_them_exactly(bits: int) -> None:
    model = prepared("lsq", bits, torch.rand(64, 3, 16, 16)).eval()
    graph, chosen = traced(model, (3, 16, 16)), Selection(default=LayerBits(bits, bits))
    program = read_program(lower(graph, chosen))
    inner = [op for op in program.ops if isinstance(op, Conv) and op.bits is not None][1:]
    assert [op.bits.weight for op in inner if op.bits] == [bits, bits]
    for op in inner:
        largest = int(np.abs(op.w_OIHW.astype(int)).max())
        # Two products of a uint8 and 64 fit int16.
        assert 32 < largest <= (127 if bits == 8 else 64)
