"""The estimate of a layer's bytes is what its file holds."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from passes.emit.onnx.onnx_file import write_onnx
from passes.pipelines import lower
from qtool.core.selection import LayerBits, Selection
from qtool.export.trace import trace
from qtool.nn.control import calibrate
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.search.size import layer_bytes, selection_bytes
from qtool.search.space import SearchLayer, space_of

SHAPE = (3, 8, 8)
WIDTHS = (8, 7, 5, 4, 3, 2, 1)


def network() -> nn.Module:
    """Sizes that fill no whole bytes, and channel counts of their own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 26, 3), nn.ReLU(),
        nn.Conv2d(26, 52, 1, groups=26, bias=False), nn.BatchNorm2d(52), nn.ReLU(),
        nn.Conv2d(52, 27, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 31), nn.ReLU(),
        nn.Linear(31, 5),
    )  # fmt: skip


def prepared() -> nn.Module:
    return prepare(network(), QuantSpec((8, 4), WIDTHS), SHAPE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The network at each weight width."""
    model = prepared()
    calibrate(model, torch.rand(4, *SHAPE))
    adaptive, folder = trace(model, SHAPE), tmp_path_factory.mktemp("files")
    for bits in WIDTHS:
        dialect = lower(adaptive.clone(), Selection(default=LayerBits(bits, 8)))
        write_onnx(dialect, folder / f"{bits}.onnx")
    return {bits: folder / f"{bits}.onnx" for bits in WIDTHS}


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_layer_takes_the_bytes_that_were_foretold(
    files: dict[int, Path], bits: int
) -> None:
    """Initializers are named after their layers, but for those that layers share."""
    space = space_of(prepared(), SHAPE)
    chosen = {layer.name: LayerBits(bits, 8) for layer in space.open}
    assert len(chosen) == 4
    initializers = onnx.load(files[bits]).graph.initializer
    total = 0
    for layer in space.layers:
        held = [len(t.raw_data) for t in initializers if t.name.startswith(f"{layer.name}.")]
        at = chosen.get(layer.name, layer.choices[0])
        assert len(held) == 4 and layer_bytes(layer, at) == sum(held), layer.name
        total += sum(held)
    assert selection_bytes(space, chosen) == total


def test_float_weights_and_unknown_shapes() -> None:
    layer = SearchLayer("conv", 1000, 72, (LayerBits(8, 8),), (8, 1, 3, 3))
    assert layer_bytes(layer, LayerBits(32, 32)) == 4 * 72 + 4 * 8
    assert layer_bytes(layer, LayerBits(16, 8)) == 2 * 72 + 4 * 8
    unknown = SearchLayer("conv", 1000, 7200, (LayerBits(8, 8),))
    assert layer_bytes(unknown, LayerBits(4, 8)) == 3600
