"""``BatchNormalization(x, the picked row)`` -> ``qtool::Norm(x, every row)``, after a trace.

``qtool::Norm`` is a norm or a bias with a row for each of its ``keys``: inputs (x, bias), and
of a BatchNorm (scale, mean, var), each (rows, channels), or (1, channels) where all rows are
the same; attributes ``name``, ``layer`` (whose bits choose the row), ``keys`` and, of a
BatchNorm, ``epsilon``; ``exact`` is a `qtool.core.choose.Serves`, 0 where it is absent. Rows
of pairs that no integer runtime has (inputs of 16 or 32 bits) stay behind.
`passes.adaptive.norm_rows` leaves one row.

torch traces what the picked row computes, so that its operators need no placeholder here.
"""

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from qtool.core.choose import parse_key
from qtool.core.errors import UnsupportedError
from qtool.core.grids import FLOAT_WIDTHS
from qtool.nn.modules.switch_norm import Switch, SwitchBias, SwitchNorm

_DOMAIN = "qtool"


def insert_norms(traced: ir.Model, model: nn.Module) -> None:
    """Put every row of `model`, which `traced` was traced from, into the graph, in place.

    Raises:
        UnsupportedError: a norm or bias that the trace has in another form.
    """
    for path, module in model.named_modules():
        if isinstance(module, SwitchNorm):
            _insert(traced.graph, module, f"{path}.rows.{module.key}.running_mean")
        elif isinstance(module, SwitchBias):
            _insert(traced.graph, module, f"{path}.rows.{module.key}")


def _insert(graph: ir.Graph, switch: SwitchNorm | SwitchBias, picked: str) -> None:
    """Replace what reads the initializer `picked`, if anything does."""
    value = graph.initializers.get(picked)
    uses = [] if value is None else list(value.uses())
    for use in uses:
        node = use.node
        if isinstance(switch, SwitchNorm):
            _require(node.op_type == "BatchNormalization" and use.idx == 3, switch, node)
            _replace_norm(graph, node, switch)
        else:
            _require(node.op_type in ("Conv", "Gemm") and use.idx == 2, switch, node)
            _move_bias(graph, node, switch)


def _require(is_known: bool, switch: Switch, node: ir.Node) -> None:
    if not is_known:
        raise UnsupportedError(f"rows of {switch.name}: traced as {node.op_type}")


def _replace_norm(graph: ir.Graph, node: ir.Node, switch: SwitchNorm) -> None:
    norm = _norm(graph, node.inputs[0], switch)
    before, after = node.outputs[0], norm.outputs[0]
    after.shape, after.type = before.shape, before.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], [norm], [before], [after])


def _move_bias(graph: ir.Graph, layer: ir.Node, switch: SwitchBias) -> None:
    layer.resize_inputs(2)
    result = layer.outputs[0]
    norm = _norm(graph, result, switch)
    after = norm.outputs[0]
    after.shape, after.type = result.shape, result.type
    result.replace_all_uses_with(after, replace_graph_outputs=True)
    norm.replace_input_with(0, result)
    after.name, result.name = result.name, f"{result.name}/unbiased"
    graph.insert_after(layer, norm)


def _norm(graph: ir.Graph, x: ir.Value | None, switch: SwitchNorm | SwitchBias) -> ir.Node:
    """Return a Norm node of `x` with the rows of `switch`, not in the graph yet."""
    name = f"{switch.name}.rows"
    keys = switch.bank.keys
    kept = [i for i, key in enumerate(keys) if parse_key(key).activation not in FLOAT_WIDTHS]
    banks = [
        _bank(graph, f"{name}.{part}", [rows[index] for index in kept])
        for part, rows in switch.parts().items()
    ]
    attributes: dict[str, ir.Attr] = {
        "name": ir.AttrString("name", switch.name),
        "layer": ir.AttrString("layer", switch.layer),
        "keys": ir.AttrStrings("keys", [keys[index] for index in kept]),
    }
    if switch.serves:
        attributes["exact"] = ir.AttrInt64("exact", switch.serves)
    if isinstance(switch, SwitchNorm):
        attributes["epsilon"] = ir.AttrFloat32("epsilon", switch.picked.eps)
    return ir.node("Norm", [x, *banks], attributes, domain=_DOMAIN, name=name)


def _bank(graph: ir.Graph, name: str, rows: list[torch.Tensor]) -> ir.Value:
    array = np.stack([row.detach().cpu().numpy() for row in rows])
    array = array[:1] if np.all(array == array[0]) else array
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(array.shape),
    )
    graph.register_initializer(value)
    return value
