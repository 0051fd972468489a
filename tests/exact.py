"""Compares a network in evaluation with the integers that are exported from it."""

import random

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from passes.graph import TWINS
from passes.pipelines import lower
from qtool.core.dialect import read_program
from qtool.core.selection import LayerBits, Selection
from qtool.export.trace import trace
from qtool.nn.control import quant_layers, quantizers, select
from qtool.nn.integers import integers
from runtimes.reference import ReferenceRuntime


def traced(model: nn.Module, shape: tuple[int, ...]) -> ir.Model:
    """The adaptive graph as a run keeps it: constants have been in a file."""
    return ir.from_proto(ir.to_proto(trace(model, shape)))


def require_equal(model: nn.Module, graph: ir.Model, selection: Selection, x: Tensor) -> int:
    """Fail unless every tensor on a grid has the same integers; return how many there are.

    Args:
        model: prepared network.
        graph: its trace, which is consumed.
        selection: the bits.
        x: images.
    """
    dialect = lower(graph, selection)
    program, twins = read_program(dialect), dialect.meta[TWINS]
    select(model, selection)
    found, output = integers(model, x)
    runtime = ReferenceRuntime(program)
    expected = runtime.intermediates(x.numpy())
    assert set(found) == set(twins), set(found) ^ set(twins)
    differing = {
        key: int(np.count_nonzero(codes != expected[twins[key]]))
        for key, codes in found.items()
    }
    assert not any(differing.values()), {k: n for k, n in differing.items() if n}
    assert type(output) is Tensor and np.array_equal(output.numpy(), runtime.run(x.numpy()))
    return sum(codes.size for codes in found.values())


def drawn_bits(model: nn.Module, draw: random.Random) -> Selection:
    """Candidates of every layer but the ends, drawn one by one."""
    layers = quant_layers(model)[1:-1]
    return Selection(
        {
            layer.name: LayerBits(
                draw.choice(layer.weight_quant.bits), draw.choice(layer.input_quant.bits)
            )
            for layer in layers
        }
    )


def jitter_steps(model: nn.Module) -> None:
    """Leave steps as training would: calibrated ones are simple fractions."""
    with torch.no_grad():
        for quantizer in quantizers(model):
            for parameter in quantizer.parameters(recurse=False):
                parameter.mul_(torch.empty_like(parameter).uniform_(0.9, 1.1))
