"""Networks with each quantizer, through the passes: the integers are what training saw."""

from functools import cache

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import pytest
import torch
from test_parity import randomise_norms
from torch import Tensor, nn

from passes.pipelines import lower
from qtool.core.dialect import Conv, Gemm, Island, Program, read_program
from qtool.core.dialect.ops import weight_of
from qtool.core.errors import UserError
from qtool.core.selection import LayerBits, Selection
from qtool.export.trace import trace
from qtool.nn.control import bit_costs, calibrate, quant_layers, select
from qtool.nn.prepare.prepare import QuantSpec, prepare
from runtimes.reference import ReferenceRuntime

SHAPE, IMAGES = (3, 6, 6), 24
SPECS = {
    "lsq_plus": QuantSpec((8, 4, 2, 1), (8, 4, 2, 1), quantizer="lsq_plus"),
    "pact": QuantSpec(
        (8, 4, 2, 1), (8, 4, 2, 1), quantizer="pact", shared=True, per_channel=False
    ),
    "pact by bits": QuantSpec((8, 4, 2, 1), (8, 4, 2, 1), quantizer="pact"),
    "dorefa": QuantSpec((8, 4, 2, 1), (7, 4, 2, 1), quantizer="dorefa"),
    "sat": QuantSpec((8, 4, 2, 1), (8, 4, 2, 1), quantizer="sat"),
    "sat_centered": QuantSpec((8, 4, 2, 1), (7, 4, 2, 1), weight_quantizer="sat_centered"),
    "double_rounding": QuantSpec((8, 4, 2, 1), (8, 4, 2, 1), quantizer="double_rounding"),
    "any_precision": QuantSpec(
        (8, 4, 2, 1), (7, 4, 2, 1), quantizer="any_precision", per_channel=True
    ),
    "one width": QuantSpec((8, 4), 4, quantizer="double_rounding"),
    "float ends": QuantSpec((4,), 4, first_last_bits=32, quantizer="dorefa"),
}


class Net(nn.Module):
    """Layers with and without BatchNorm, unsigned and signed inputs, ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.linear = nn.Sequential(nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6))
        self.depth = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6())
        self.hidden, self.last = nn.Linear(24, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.linear(self.stem(x)))
        y: Tensor = self.last(torch.relu(self.hidden(x.flatten(1))))
        return y


@cache
def made(name: str) -> tuple[nn.Module, Tensor, bytes]:
    """A prepared network with parameters as training would leave them, images, its trace."""
    torch.manual_seed(3)
    net, x = Net(), torch.rand(IMAGES, *SHAPE)
    randomise_norms(net)
    model = prepare(net, SPECS[name], SHAPE)
    calibrate(model, x)
    for norm in (net.stem[1], net.linear[1]):
        norm.reset_running_stats()
        norm.momentum = None
    select(model, Selection(default=LayerBits(4, 4)))
    model.train()(x)
    calibrate(model, x)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("step", "alpha", "offset")):
                parameter.mul_(torch.empty_like(parameter).uniform_(0.8, 1.1))
    model.eval()
    return model, x, ir.to_proto(trace(model, SHAPE)).SerializeToString()


def integers(name: str, selection: Selection, allow_float: bool = False) -> Program:
    graph = ir.from_proto(onnx.load_model_from_string(made(name)[2]))
    return read_program(lower(graph, selection, allow_float))


# As how many times as large the device holds codes of 1, 2, ... 8 bits: at most 64 comes out.
TIMES = {
    "symmetric": (64, 64, 16, 8, 4, 2, 1, 1),
    "double_rounding": (64, 64, 16, 8, 4, 2, 1, 1),
    "modified": (64, 32, 16, 8, 4, 2, 1, 1),
    "dorefa": (64, 16, 8, 4, 2, 1, 1, 1),
    "centered": (64, 16, 8, 4, 2, 1, 1, 1),
}


def trained_codes(model: nn.Module) -> dict[str, np.ndarray]:
    """Every layer's codes at the selected bits; BatchNorm's sign is part of them."""
    found = {}
    for layer in quant_layers(model):
        quantizer, weight = layer.weight_quant, layer.layer.weight.detach()
        assert quantizer.selected is not None
        values = quantizer.quantize_at(weight, quantizer.selected)
        scale = quantizer.scale(quantizer.selected, weight)
        sign = torch.ones(len(weight)) if layer.norm is None else layer.norm.weight.sign()
        shape = (-1, *[1] * (weight.ndim - 1))
        times = TIMES[quantizer.rule.scheme][quantizer.selected - 1]
        codes = values / scale.reshape(shape) * sign.reshape(shape) * times
        found[layer.name] = codes.detach().numpy()
    return found


def logits(model: nn.Module, program: Program, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return torch's and the integer model's logits, in units of their grid."""
    with torch.no_grad():
        fake = model(x).numpy() / program.output_grid.scale
    return fake, np.rint(ReferenceRuntime(program).run(x.numpy()) / program.output_grid.scale)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("name", [n for n in SPECS if n not in ("one width", "float ends")])
def test_codes_are_those_of_training(name: str, bits: int) -> None:
    model, x, _ = made(name)
    widest = max(quant_layers(model)[1].weight_quant.bits)
    selection = Selection(default=LayerBits(min(bits, widest), bits))
    select(model, selection)
    program = integers(name, selection)
    layers = [op for op in program.ops if isinstance(op, Conv | Gemm) and op.bits is not None]
    wanted = trained_codes(model)
    assert [op.name for op in layers] == list(wanted)
    for op in layers:
        assert np.abs(weight_of(op) - wanted[op.name]).max() < 1e-3, op.name
    fake, exact = logits(model, program, x)
    assert np.array_equal(np.rint(fake), exact)
    # At fewer bits than it was calibrated for a net may say the same of every image.
    assert len(np.unique(exact, axis=0)) > (IMAGES // 2 if bits >= 4 else 0)


def test_one_candidate_of_double_rounding_is_exported_at_its_own_bits() -> None:
    model, x, _ = made("one width")
    layer = quant_layers(model)[1]
    assert layer.weight_quant.bits == (4,) and layer.weight_quant.step.shape == (1, 6)
    select(model, Selection())
    program = integers("one width", Selection())
    wanted = trained_codes(model)
    for op, bits in program.layers():
        assert bits.weight == (8 if op.name in ("stem.0", "last") else 4)
        assert np.abs(weight_of(op) - wanted[op.name]).max() < 1e-3, op.name
    fake, exact = logits(model, program, x)
    assert np.array_equal(np.rint(fake), exact)


def test_float_ends_are_islands() -> None:
    model, x, _ = made("float ends")
    with pytest.raises(
        UserError, match=r"layer stem.0: weights of 32 bits would run in float"
    ):
        integers("float ends", Selection())
    program = integers("float ends", Selection(), allow_float=True)
    wanted = {cost.name: cost.bits for cost in bit_costs(model, SHAPE, Selection())}
    assert {cost.name: cost.bits for cost in program.layer_costs()} == wanted
    assert wanted["stem.0"] == wanted["last"] == LayerBits(32, 32)
    assert wanted["hidden"] == LayerBits(4, 4)
    select(model, Selection())
    fake, exact = logits(model, program, x)
    # Float sums in another order: an image differs where one crosses a boundary.
    assert np.mean(np.all(np.abs(fake - exact) < 0.5, axis=1)) >= 0.75


def test_weights_that_were_normalised_can_be_exported_as_they_are() -> None:
    program = integers("dorefa", Selection({"depth.0": LayerBits(32, 32)}), allow_float=True)
    island = next(op for op in program.ops if op.name == "depth.0")
    assert isinstance(island, Island)
    body = onnx.load_model_from_string(island.body).graph.initializer
    stored = [onnx.numpy_helper.to_array(t) for t in body if tuple(t.dims) == (6, 1, 3, 3)]
    weight = quant_layers(made("dorefa")[0])[2].layer.weight
    assert np.array_equal(stored[0], weight.detach().numpy())
