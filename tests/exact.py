"""Compares a network in evaluation with the integers that are exported from it."""

import random

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from passes.pipelines import lower
from passes.twins import twins_of
from qtool.core.dialect import read_program
from qtool.core.selection import LayerBits, Selection
from qtool.export.trace import trace
from qtool.nn.control import quant_layers, quantizers, select
from qtool.witness.figures import differing
from qtool.witness.of_run import quantized
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
    program, twins = read_program(dialect), twins_of(dialect)
    select(model.eval(), selection)
    with torch.no_grad(), quantized(model) as found:
        output = model(x)
    runtime = ReferenceRuntime(program)
    expected = runtime.intermediates(x.numpy())
    # A grid that moved in front of a Concat is there for each part too.
    assert found and set(found) <= set(twins), set(found) - set(twins)
    counts = {
        key: differing(codes, expected[twins[key].tensor], twins[key].grid)
        for key, codes in found.items()
    }
    wrong = {key: count.mismatched for key, count in counts.items() if count.mismatched}
    assert not wrong
    assert type(output) is Tensor and np.array_equal(output.numpy(), runtime.run(x.numpy()))
    return sum(count.compared for count in counts.values())


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
    """Leave steps as training would: a calibrated one is a simple fraction of the largest
    value, and equal values then lie on a rounding boundary, all together.
    """
    with torch.no_grad():
        for quantizer in quantizers(model):
            for parameter in quantizer.parameters(recurse=False):
                parameter.mul_(torch.empty_like(parameter).uniform_(0.9, 1.1))
