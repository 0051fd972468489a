"""Networks with random weights as files, for the benchmarks: float, by qtool, by ONNX Runtime.

Weights are random; BatchNorm statistics are those of a few random images, so that every layer
sees values of the size a trained network has; latency depends on nothing else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from passes.emit.onnx.target import OnnxTarget
from passes.emit.relay.target import RelayTarget
from passes.emit.tvm.target import TvmTarget
from passes.pipelines import import_qdq, lower
from qtool.core.dialect import Program
from qtool.core.selection import LayerBits, Selection
from qtool.export.foreign_import import read_foreign
from qtool.export.read import load_graph
from qtool.export.trace import trace, trace_float
from qtool.models import model_factory
from qtool.nn.control import calibrate, quantizers
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.prepare.prepare import QuantSpec, prepare

# How the names of files end that `write_library` writes.
COMPILED = (TvmTarget.suffixes[0], *RelayTarget.suffixes)


@dataclass(frozen=True)
class Bits:
    """Weight bits, bits of every layer's input, bits of every tensor between layers.

    The first and the last layer have the same bits as the others, or `ends` in weights and
    input; the image has 8.
    """

    weight: int
    activation: int
    glue: int
    ends: int | None = None

    def spec(self, model: nn.Module) -> QuantSpec:
        """Return what `prepare` needs for `model`."""
        kinds = (nn.Conv2d, nn.Linear)
        names = [name for name, part in model.named_modules() if isinstance(part, kinds)]
        ends = {
            names[0]: LayerBits(self.ends or self.weight, 8),
            names[-1]: LayerBits(self.ends or self.weight, self.ends or self.activation),
        }
        return QuantSpec((self.activation,), self.weight, glue_bits=self.glue, layers=ends)


def images(count: int, size: int) -> NDArray[np.float32]:
    """Return random images in [0, 1]: coarse squares, brighter or darker."""
    coarse = np.random.default_rng(0).random((count, 3, 8, 8), np.float32)
    return np.ascontiguousarray(coarse.repeat(size // 8, 2).repeat(size // 8, 3))


def random_network(name: str, size: int) -> nn.Module:
    """Return network `name` for ImageNet with random weights and fitting statistics."""
    torch.manual_seed(0)
    model = model_factory(name)(classes=1000)
    for norm in norms(model):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = None  # plain averages
    with torch.no_grad():
        model.train()(torch.from_numpy(images(8, size)))
    return model.eval()


def norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """Yield the BatchNorms of `model`."""
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def write_float(name: str, size: int, path: Path) -> None:
    """Write the float network, BatchNorm folded."""
    ir.save(trace_float(random_network(name, size), (3, size, size)), path)


def write_static(source: Path, size: int, operator_form: bool, path: Path) -> None:
    """Write what ONNX Runtime's own quantizer makes of the float network in `source`.

    uint8 activations, int8 weights per channel: its recommendation for x86-64 CPUs.
    """
    from onnxruntime import quantization as q

    prepared = path.with_suffix(".prepared.onnx")
    q.shape_inference.quant_pre_process(str(source), str(prepared))
    q.quantize_static(
        str(prepared), str(path), _Images(size), per_channel=True,
        quant_format=q.QuantFormat.QOperator if operator_form else q.QuantFormat.QDQ,
        activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
    )  # fmt: skip


class _Images:
    """Calibration images as `quantize_static` reads them."""

    def __init__(self, size: int) -> None:
        self.left = [{"input": x[None]} for x in images(8, size)]

    def get_next(self) -> dict[str, Any] | None:
        return self.left.pop() if self.left else None


def write_qtool(name: str, size: int, bits: Bits, paths: Mapping[str, Path]) -> None:
    """Write the network as qtool exports it.

    Args:
        name: of the network.
        size: of the image.
        bits: of everything.
        paths: of the files by form, "qdq" and "qop".
    """
    model = random_network(name, size)
    prepared = prepare(model, bits.spec(model))
    calibrate(prepared, torch.from_numpy(images(2, size)))
    jitter_steps(prepared)
    dialect = lower(trace(prepared, (3, size, size)), Selection())
    for form, path in paths.items():
        OnnxTarget(form).write(dialect, path)


def write_library(source: Path, foreign: bool, path: Path) -> None:
    """Compile a QDQ file with TVM or for Relay, one of qtool or a `foreign` one."""
    dialect = read_foreign(source)[0] if foreign else import_qdq(load_graph(source))
    relay = path.name.endswith(RelayTarget.suffixes)
    target = RelayTarget(relay_qnn=".qnn." in path.name) if relay else TvmTarget()
    target.write(dialect, path)


def write_program(program: Program, path: Path) -> None:
    """Compile `program` with TVM for this machine."""
    from passes.emit.tvm.compile import compile_program

    path.write_bytes(compile_program(program).data)


def jitter_steps(prepared: nn.Module) -> None:
    """Leave steps as training would: no two grids of one tensor are equal by accident."""
    for quantizer in quantizers(prepared):
        if isinstance(quantizer.step, nn.Parameter):
            with torch.no_grad():
                quantizer.step.mul_(torch.empty_like(quantizer.step).uniform_(0.9, 1.1))
        if isinstance(quantizer, FakeQuantizer):  # weights have steps without a limit
            quantizer.limit()
