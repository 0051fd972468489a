"""A graph between two passes: unchanged, or an error that names the pass before it.

1. Names are there, and no two tensors share one; initializers are known under their own.
2. What a node reads is made before it, by this graph.
3. Operators exist: in ONNX with as many inputs, in other domains by their import.
4. What a quantizer makes is float32 with known dimensions behind the batch's, those of what it
   reads.
For tests and for whoever writes a pass: `passes.pipelines` runs it where it is asked to.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, InvariantError, PassResult

from passes.graph import fake_quants


@dataclass(frozen=True)
class CheckWellFormed(InPlacePass):
    """Raise for the first fault of a graph.

    Args:
        after: the pass that left it so.
    """

    after: str

    def call(self, model: ir.Model) -> PassResult:
        """Check `model`."""
        for fault in faults(model):
            raise InvariantError(f"after {self.after}: {fault}")
        return PassResult(model, False)


def faults(model: ir.Model) -> Iterator[str]:
    """Yield a sentence for each fault; names the node or tensor."""
    known: dict[str, ir.Value] = {}
    for name, value in model.graph.initializers.items():
        if value.name != name or value.const_value is None:
            yield f"initializer {name} is called {value.name}, or has no data"
    # An initializer may be an input too: one that files may replace.
    for value in dict.fromkeys((*model.graph.inputs, *model.graph.initializers.values())):
        yield from _define(known, value, "the graph")
    for node in model.graph:
        where = f"node {node.name} ({node.op_type})"
        yield from _operator(node, where, model)
        for read in node.inputs:
            if read is not None and known.get(str(read.name)) is not read:
                yield f"{where} reads {read.name}, which nothing before it makes"
        for made in node.outputs:
            if made.name != "":  # a result that nobody asks for
                yield from _define(known, made, where)
    for value in model.graph.outputs:
        if known.get(str(value.name)) is not value:
            yield f"output {value.name}: nothing makes it"
    yield from _quantizers(model)


def _define(known: dict[str, ir.Value], value: ir.Value, where: str) -> Iterator[str]:
    if not value.name:
        yield f"{where} makes a tensor without a name"
    elif value.name in known:
        yield f"{where}: two tensors are called {value.name}"
    known[str(value.name)] = value


def _operator(node: ir.Node, where: str, model: ir.Model) -> Iterator[str]:
    if node.domain:
        if node.domain not in model.opset_imports:
            yield f"{where}: domain {node.domain} is not imported"
    elif not onnx.defs.has(node.op_type):
        yield f"{where}: no such operator"
    else:
        # The newest: Canonicalize spells a Swish before the opset that has it.
        schema = onnx.defs.get_schema(node.op_type)
        if not schema.min_input <= len(node.inputs) <= schema.max_input:
            yield f"{where}: {len(node.inputs)} inputs"


def _quantizers(model: ir.Model) -> Iterator[str]:
    for view in fake_quants(model):
        result = view.node.outputs[0]
        if view.role == "weight":
            continue
        dims = [None] if result.shape is None else list(result.shape)[1:]
        if result.dtype != ir.DataType.FLOAT or not all(isinstance(n, int) for n in dims):
            yield f"FakeQuant {view.name} makes {result.dtype} of shape {result.shape}"
        source = view.source.shape
        if source is not None and list(source)[1:] != dims:
            yield f"FakeQuant {view.name} makes {result.shape} of {source}"
