"""Random networks, from torch to three runtimes: the same integers at every tensor."""

import random
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from exact import jitter_steps
from torch import Tensor, nn

from passes.emit.onnx.onnx_qdq import emit_onnx_qdq
from passes.emit.tvm.compile import compile_program
from passes.pipelines import import_qdq, lower
from qtool.core.dialect import read_program
from qtool.core.selection import LayerBits, Selection
from qtool.export.trace import trace
from qtool.models import MODELS, model_entry, model_factory
from qtool.nn.control import calibrate, quant_layers, select
from qtool.nn.prepare.prepare import QuantSpec, prepare
from runtimes.compare import Parity
from runtimes.ort import OrtRuntime
from runtimes.reference import ReferenceRuntime
from runtimes.tvm import TvmRuntime


class RandomNet(nn.Module):
    """Convolutions of random shape, some added to their input, pooled and classified."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        channels = draw.choice([3, 5, 8])
        self.stem = self._conv(draw, 3, channels, 1)
        self.blocks = nn.ModuleList()
        for _ in range(draw.randint(1, 3)):
            groups = channels if draw.random() < 0.4 else 1
            self.blocks.append(self._conv(draw, channels, channels, groups))
        self.last = nn.Conv2d(channels, 7, 1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(7, 4)

    @staticmethod
    def _conv(draw: random.Random, inputs: int, outputs: int, groups: int) -> nn.Sequential:
        kernel, dilation = draw.choice([1, 3, 5]), draw.choice([1, 1, 2])
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(
            inputs, outputs, kernel, 1, padding, dilation, groups, bias=draw.random() < 0.5
        )
        tail = draw.choice([[nn.ReLU()], [nn.ReLU6()], []])
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), *tail)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.stem(x), 2)
        for block in self.blocks:
            x = x + block(x)
        x = nn.functional.adaptive_avg_pool2d(self.relu(self.last(x)), 1)
        y: Tensor = self.fc(torch.flatten(x, 1))
        return y


def randomise_norms(model: nn.Module) -> None:
    """Negative, zero and tiny gammas; statistics away from 0 and 1."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            with torch.no_grad():
                norm.weight[0] = 0.0
                norm.weight[-1] *= 1e-3
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.1, 3)


def compare(model: nn.Module, shape: tuple[int, ...], seed: int, folder: Path) -> None:
    """Lower `model` at random bits; compare every tensor of three runtimes, torch's logits."""
    draw = random.Random(seed)
    randomise_norms(model)
    candidates = (8, 4, 3, 2)
    spec = QuantSpec(candidates, candidates, asymmetric=draw.random() < 0.5)
    prepared = prepare(model, spec, shape)
    images = torch.rand(16, *shape)
    x = images[:3]
    calibrate(prepared, images)
    jitter_steps(prepared)
    layers = [layer.name for layer in quant_layers(prepared)][1:-1]
    bits = {
        name: LayerBits(draw.choice(candidates), draw.choice(candidates)) for name in layers
    }
    dialect = lower(trace(prepared, shape), Selection(bits))
    path = folder / "model.onnx"
    ir.save(emit_onnx_qdq(dialect, {}), path)
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    program = read_program(import_qdq(ir.from_proto(proto)))
    assert program.digest() == read_program(dialect).digest()
    library = folder / "model.so"
    compiled = compile_program(program, batch=3)
    library.write_bytes(compiled.data)
    expected = ReferenceRuntime(program).intermediates(x.numpy())
    ort = OrtRuntime(path, list(expected))
    assert not ort.float_ops(), f"seed {seed}"
    in_registers = compiled.module.facts["fused_tensors"]
    for runtime, fused in ((ort, ()), (TvmRuntime(library), in_registers)):
        parity = Parity()
        parity.add_all(expected, runtime.intermediates(x.numpy()), fused)
        name = type(runtime).__name__
        assert parity.mismatched == 0, f"seed {seed}, {name}: {parity.first_divergence}"
        logits = ReferenceRuntime(program).run(x.numpy())
        assert np.array_equal(runtime.run(x.numpy()), logits)
    select(prepared.eval(), Selection(bits))
    with torch.no_grad():
        fake = prepared(images).numpy()
    assert np.array_equal(fake, ReferenceRuntime(program).run(images.numpy())), f"seed {seed}"


@pytest.mark.parametrize("seed", range(4))
def test_random_network(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    compare(RandomNet(random.Random(seed)), (3, 11, 9), seed, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(100, 140))
def test_random_network_sweep(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    compare(RandomNet(random.Random(seed)), (3, 11, 9), seed, tmp_path)


QUICK = (
    "cnn4_omniglot", "cnn5_omniglot", "mobilenet_v2_small", "preact_resnet20_narrow",
    "resnet20",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.nightly) for n in MODELS],
)
def test_standard_topology(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    channels, height, width = model_entry(name).input_shape
    # ImageNet's networks take any size; the others have linear layers made for theirs.
    shape = (channels, 40, 40) if min(height, width) > 100 else (channels, height, width)
    model = model_factory(name)(in_channels=channels, classes=10)
    compare(model, shape, 0, tmp_path)
