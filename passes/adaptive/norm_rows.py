"""``Norm(x, bias[n], scale[n], mean[n], var[n])`` -> ``BatchNormalization`` with one row.

Cases:
1. A BatchNorm: ``BatchNormalization(x, scale[r], bias[r], mean[r], var[r])``.
2. A bias alone, behind a Conv or Gemm that nothing else reads: the layer's own bias, to which
   it is added (where that was 0, the row as it is).
Refuses rows that do not fit the keys, and a bias alone behind anything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph import QTOOL, add_constant, operand, replace_node
from qtool.core.choose import Serves
from qtool.core.dialect import constant
from qtool.core.errors import UnsupportedError

_PARTS = ("bias", "weight", "running_mean", "running_var")


@dataclass(frozen=True)
class NormRows:
    """Typed view of a ``qtool::Norm`` node.

    `serves`: what the rows do.
    `banks` has the rows (keys or 1, channels) of "bias" and, of a BatchNorm, of "weight",
    "running_mean" and "running_var".
    """

    node: ir.Node
    name: str
    layer: str
    keys: tuple[str, ...]
    serves: Serves
    banks: dict[str, NDArray[Any]]

    def row(self, part: str, index: int) -> NDArray[Any]:
        """Return row `index` of a bank, (channels,)."""
        bank = self.banks[part]
        return np.ascontiguousarray(bank[index if len(bank) > 1 else 0])


def norm_rows(model: ir.Model) -> list[NormRows]:
    """Return every Norm node in graph order.

    Raises:
        UnsupportedError: a node that case 1 and 2 are not about.
    """
    nodes = (node for node in model.graph if node.domain == QTOOL and node.op_type == "Norm")
    return [_view(node) for node in nodes]


def _view(node: ir.Node) -> NormRows:
    attributes = node.attributes
    name, keys = attributes.get_string("name", ""), attributes.get_strings("keys", ())
    parts = dict(zip(_PARTS, node.inputs[1:], strict=False))
    banks = {part: constant(value) for part, value in parts.items() if value is not None}
    known = {part: bank for part, bank in banks.items() if bank is not None}
    if tuple(known) not in (_PARTS, _PARTS[:1]):
        raise UnsupportedError(f"Norm {name}: its rows are not constant, or some are missing")
    for part, bank in known.items():
        if bank.ndim != 2 or len(bank) not in (1, len(keys)):
            raise UnsupportedError(
                f"Norm {name}: {part} is {list(bank.shape)}, expected 1 or {len(keys)} rows"
            )
    layer, serves = attributes.get_string("layer", name), attributes.get_int("exact", 0)
    view = NormRows(node, name, layer, tuple(keys), Serves(serves), known)
    if len(known) == 1:
        _layer_before(view)
    return view


def _layer_before(view: NormRows) -> ir.Node:
    """Return the Conv or Gemm whose bias `view` is."""
    value = operand(view.node, 0)
    layer = value.producer()
    kind = "the input" if layer is None else layer.op_type
    if layer is None or kind not in ("Conv", "Gemm") or layer.domain:
        raise UnsupportedError(f"Norm {view.name}: a bias after {kind}, not Conv or Gemm")
    if len(list(value.uses())) != 1 or value.is_graph_output():
        raise UnsupportedError(f"layer {view.name}: its result is also read without its bias")
    return layer


def keep_row(graph: ir.Graph, view: NormRows, index: int) -> None:
    """Leave row `index` of `view` in `graph`."""
    prefix = f"{view.name}.norm"
    if len(view.banks) == 1:
        _to_layer(graph, view, view.row("bias", index))
        return
    order: Sequence[str] = ("weight", "bias", "running_mean", "running_var")
    rows = [add_constant(graph, f"{prefix}.{part}", view.row(part, index)) for part in order]
    epsilon = view.node.attributes.get_float("epsilon", 1e-5)
    plain = ir.node(
        "BatchNormalization", [operand(view.node, 0), *rows], {"epsilon": epsilon},
        name=view.name,
    )  # fmt: skip
    replace_node(view.node, plain)


def _to_layer(graph: ir.Graph, view: NormRows, bias: NDArray[Any]) -> None:
    layer, result = _layer_before(view), view.node.outputs[0]
    before = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    if before is not None and np.any(before):
        bias = before.reshape(-1) + bias
    layer.resize_inputs(3)
    layer.replace_input_with(2, add_constant(graph, f"{view.name}.layer.bias", bias))
    name, is_output = result.name, result.is_graph_output()
    result.replace_all_uses_with(layer.outputs[0], replace_graph_outputs=True)
    graph.remove(view.node, safe=True)
    if is_output:
        layer.outputs[0].name = name
