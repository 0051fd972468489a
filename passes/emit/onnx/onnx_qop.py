"""Integer dialect -> ONNX in operator form: QLinearConv, QGemm, QLinearAdd, ... as they are.

The dialect itself with its weights packed and its layers' bits in the metadata. It needs
ONNX Runtime (com.microsoft operators); the QDQ form is the one that other runtimes read.
"""

from collections.abc import Mapping

import onnx_ir as ir

from passes.emit.onnx.packed import finish, pack_weights
from passes.graph import collection_paused
from passes.packing.nesting import Nested
from qtool.core.dialect import ISLAND_KEY
from qtool.core.errors import UnsupportedError

# Node types that ONNX Runtime has as they are.
NODES = frozenset((
    "QuantizeLinear", "DequantizeLinear", "Clip", "Cast", "Gather", "QLinearConv", "QGemm",
    "QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "MaxPool",
    "Reshape", "Flatten", "Transpose", "Concat", "Slice", "Pad", "Resize", "Add",
))  # fmt: skip


def emit_onnx_qop(
    dialect: ir.Model, metadata: Mapping[str, str], shared: Mapping[str, Nested] | None = None
) -> ir.Model:
    """Return a new model in operator form; `dialect` is not changed.

    Args:
        dialect: result of `passes.pipelines.lower`.
        metadata: further entries of the file's metadata.
        shared: how weights are held that several files share, by layer.

    Raises:
        UnsupportedError: a node that the operator form does not have; names it.
    """
    for node in dialect.graph:
        if node.op_type not in NODES and ISLAND_KEY not in node.metadata_props:
            raise UnsupportedError(f"node {node.name}: {node.op_type} has no operator form")
    with collection_paused():
        source = dialect.clone()
        bits = pack_weights(source.graph, shared or {})
        return finish(source.graph, bits, metadata, operator_form=True)
