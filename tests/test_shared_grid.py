"""A layer that reads a tensor at the bits of its grid reads it on that grid."""

import copy

import pytest
import torch
from torch import Tensor, nn

from passes.pipelines import lower
from qtool.core.dialect import Lookup, read_program
from qtool.core.selection import Selection
from qtool.export.trace import trace
from qtool.nn.control import calibrate, quant_layers, quantizers, select
from qtool.nn.modules.shared_grid import SharedGrid
from qtool.nn.prepare.prepare import QuantSpec, prepare


class Residual(nn.Module):
    """stem, x + conv(x), head; ReLU6 behind the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.head = nn.ReLU6(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y: Tensor = self.head(x + self.conv(x))
        return y


def prepared(bits: int, glue: int = 8) -> nn.Module:
    torch.manual_seed(0)
    spec = QuantSpec((bits,), 8, first_last_bits=bits, glue_bits=glue)
    model: nn.Module = prepare(Residual(), spec)
    calibrate(model, torch.rand(4, 3, 8, 8))
    return model


def changes_of_grid(model: nn.Module) -> int:
    program = read_program(lower(trace(model, (3, 8, 8)), Selection()))
    return sum(isinstance(op, Lookup) for op in program.ops)


@pytest.mark.parametrize(("bits", "glue", "changes"), [(8, 8, 0), (4, 4, 0), (4, 8, 1)])
def test_equal_bits_need_no_change_of_grid(bits: int, glue: int, changes: int) -> None:
    model = prepared(bits, glue)
    for quantizer in quantizers(model):
        if isinstance(quantizer.step, nn.Parameter):
            quantizer.step.data *= 0.97
    assert changes_of_grid(model) == changes


def test_a_follower_has_its_leaders_step_and_saves_nothing() -> None:
    model = prepared(8)
    follower = next(q for q in quantizers(model) if isinstance(q, SharedGrid))
    twin = copy.deepcopy(model)
    own = next(q for q in quantizers(twin) if isinstance(q, SharedGrid))
    assert follower.name == "conv" and follower.bits == (8,)
    assert "conv.input_quant.step" not in model.state_dict()
    twin.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})
    assert torch.equal(own.step, follower.step * 2)


def test_values_are_rounded_once() -> None:
    model = prepared(8)
    select(model, Selection())
    follower = next(q for q in quantizers(model) if isinstance(q, SharedGrid))
    values = follower.quantize_at(torch.rand(100) * 6, 8)
    assert torch.equal(follower(values), values)


@pytest.mark.parametrize("bits", [8, 4])
def test_training_keeps_steps_below_what_relu6_needs(bits: int) -> None:
    model = prepared(bits, bits).train()
    select(model, Selection())
    layer = next(layer for layer in quant_layers(model) if layer.name == "conv")
    with torch.no_grad():
        layer.input_quant.step.fill_(1.0)
    model(torch.rand(2, 3, 8, 8))
    assert float(layer.input_quant.scale(bits)) == pytest.approx(6 / (2**bits - 1))
    program = read_program(lower(trace(model, (3, 8, 8)), Selection()))
    stem = next(op for op in program.ops if op.name == "stem")
    assert (stem.lo, stem.hi) == (0, 2**bits - 1)
