"""Finds norms and ReLUs to compute with the quantizer behind (`qtool.nn.modules.prologue`).

Cases, each tensor between having one reader:
1. layer with BatchNorm -> ReLU or ReLU6 -> quantizer (a layer's input, or glue).
2. layer with BatchNorm -> quantizer.
3. any operator -> ReLU or ReLU6 -> quantizer.
A BatchNorm that stands alone is a layer here.
"""

from torch import fx, nn

from qtool.nn.capture.place import fresh
from qtool.nn.modules.affine import QuantAffine
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.prologue import Deferred, Prologue
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.nn.prepare.graph_view import GraphView


def defer(view: GraphView) -> None:
    """Give every quantizer of a prepared graph its prologue; changes ReLUs to `Deferred`."""
    for node in view.nodes:
        quantizer = _quantizer(view, node)
        if quantizer is not None:
            _give_prologue(view, node, quantizer)


def _quantizer(view: GraphView, node: fx.Node) -> FakeQuantizer | None:
    """Return the quantizer that rounds what `node` reads, if it is its own."""
    module = view.module(node)
    quantizer = module.input_quant if isinstance(module, QuantLayer) else module
    return quantizer if isinstance(quantizer, FakeQuantizer) else None


def _give_prologue(view: GraphView, node: fx.Node, quantizer: FakeQuantizer) -> None:
    source, ceiling = view.source(node), None
    bounds = view.bounds(source)
    if bounds is not None and bounds[0] == 0 and _read_once(source):
        ceiling = bounds[1]
        _defer_relu(view.gm, source, ceiling)
        source = view.source(source)
    owner = _deferrable(view, source)
    if owner is not None:
        owner.defers_norm = True
    if owner is not None or ceiling is not None:
        quantizer.defer(Prologue(owner, ceiling))


def _deferrable(view: GraphView, node: fx.Node) -> QuantLayer | QuantAffine | None:
    """Return the module that `node` calls if it ends in a BatchNorm with one reader."""
    owner = view.module(node)
    if not isinstance(owner, QuantLayer | QuantAffine) or not _read_once(node):
        return None
    return owner if isinstance(owner.norm, nn.BatchNorm2d) else None


def _read_once(node: fx.Node) -> bool:
    return len(node.users) == 1


def _defer_relu(gm: fx.GraphModule, relu: fx.Node, ceiling: float) -> None:
    name = fresh(gm, f"deferred_{relu.name}")
    gm.add_submodule(name, Deferred(ceiling))
    relu.op, relu.target = "call_module", name
    relu.args, relu.kwargs = (relu.all_input_nodes[0],), {}
