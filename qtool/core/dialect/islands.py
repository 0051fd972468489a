"""Float islands: the nodes between DequantizeLinear and QuantizeLinear, as a small model.

``Q(f(DQ(x0), DQ(x1), ...))`` -> f as an ONNX model of its own, with inputs ``x0, x1, ...``,
constants ``c0, ...`` and the result ``y``. Nodes are in the order in which a walk back from
the result meets them and names are counted, so that equal islands have equal bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from qtool.core.cost import FLOAT_BITS, LayerCost
from qtool.core.dialect.attributes import is_plain
from qtool.core.dialect.nodes import constant, static_shape, value_name
from qtool.core.errors import UnsupportedError
from qtool.core.selection import LayerBits

# Newest opset that torch.onnx.export and our own files share; older ones from 18 on mean the
# same, but for the operator below.
OPSET, OLDEST_OPSET, IR_VERSION = 21, 18, 10
_CHANGED_SINCE = {"GroupNormalization": 21}
_RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
    "Multinomial",
}  # fmt: skip
_TRAINED = ("Dropout", "BatchNormalization")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Region:
    """Nodes that compute `result`, in order, and what they read."""

    result: ir.Value
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]

    @property
    def operators(self) -> tuple[str, ...]:
        """Types of the nodes that compute something at run time."""
        fixed = self._fixed()
        return tuple(
            node.op_type
            for node in self.nodes
            if node.outputs[0] not in fixed and not _is_guard(node)
        )

    def _fixed(self) -> set[ir.Value]:
        """Return the values that only constants determine."""
        fixed = set(self.constants)
        for node in self.nodes:
            if all(value is None or value in fixed for value in node.inputs):
                fixed |= set(node.outputs)
        return fixed

    def weights(self) -> list[tuple[ir.Node, ir.Value]]:
        """Return the convolutions and linear layers, with their weights."""
        fixed = self._fixed()
        return [
            (node, weight)
            for node in self.nodes
            if node.op_type in _LAYERS
            and len(node.inputs) > 1
            and (weight := node.inputs[1]) is not None
            and weight in fixed
        ]


def _is_guard(node: ir.Node) -> bool:
    """True for the ``LeakyRelu(alpha=1)`` that `passes.lower.islands` ends some with."""
    return node.op_type == "LeakyRelu" and node.attributes.get_float("alpha", 0.01) == 1


def collect(result: ir.Value, is_input: Callable[[ir.Value], bool]) -> Region:
    """Return the nodes between tensors that satisfy `is_input` and `result`.

    Raises:
        UnsupportedError: something that no island can hold; names the operator.
    """
    nodes: dict[ir.Node, None] = {}
    inputs: dict[ir.Value, None] = {}
    constants: dict[ir.Value, None] = {}
    stack = [result.producer()]
    while stack:
        node = stack[-1]
        if node is None or node in nodes:
            stack.pop()
            continue
        waiting = []
        for value in node.inputs:
            if value is None or value in inputs or value in constants:
                continue
            if is_input(value):
                inputs[value] = None
            elif constant(value) is not None:
                constants[value] = None
            elif value.producer() is None:
                raise UnsupportedError(
                    f"operator {node.op_type} reads {value_name(value)}, which nothing makes"
                )
            elif value.producer() not in nodes:
                waiting.append(value.producer())
        if waiting:
            stack += waiting[::-1]
            continue
        _require_portable(node)
        nodes[node] = None
        stack.pop()
    return Region(result, tuple(nodes), tuple(inputs), tuple(constants))


def _require_portable(node: ir.Node) -> None:
    """Refuse operators whose meaning depends on more than their inputs."""
    if node.domain:
        reason = f"it belongs to the domain {node.domain}"
    elif node.op_type in _TRAINED and not is_plain(node):
        reason = "it is in training mode"
    elif node.op_type in _RANDOM:
        reason = "its results are random"
    elif any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
             for a in node.attributes.values()):  # fmt: skip
        reason = "it is control flow"
    else:
        return
    raise UnsupportedError(f"operator {node.op_type} cannot stay in floating point: {reason}")


def require_opset(region: Region, opset: int | None) -> None:
    """Refuse nodes of an opset in which they mean something else than in `OPSET`."""
    if opset is None or opset < OLDEST_OPSET:
        raise UnsupportedError(
            f"operator {region.nodes[0].op_type} of opset {opset} cannot stay in floating "
            f"point; convert the model to opset {OLDEST_OPSET} or newer "
            "(onnx.version_converter)"
        )
    for node in region.nodes:
        if opset < _CHANGED_SINCE.get(node.op_type, 0):
            raise UnsupportedError(
                f"operator {node.op_type} of opset {opset} means something else since opset "
                f"{_CHANGED_SINCE[node.op_type]}; convert the model (onnx.version_converter)"
            )
        if opset > OPSET and node.op_type != "Swish":  # which is spelled out
            _require_known(node)


def _require_known(node: ir.Node) -> None:
    """Refuse what `OPSET` does not have."""
    known = onnx.defs.has(node.op_type, OPSET)
    schema = onnx.defs.get_schema(node.op_type, OPSET) if known else None
    names = () if schema is None else schema.attributes
    new = [name for name in node.attributes if name not in names]
    if schema is None or new:
        what = f"with {new[0]}" if schema is not None else ""
        raise UnsupportedError(
            f"operator {node.op_type} {what}".rstrip()
            + f" cannot stay in floating point: islands are of opset {OPSET}, which has none"
        )


def body(region: Region) -> bytes:
    """Return `region` as a serialised ONNX model, the same bytes for the same computation."""
    names: dict[ir.Value, str] = {}
    for letter, values in (("x", region.inputs), ("c", region.constants)):
        names |= {value: f"{letter}{index}" for index, value in enumerate(values)}
    protos = []
    for node in region.nodes:
        for value in node.outputs:
            names[value] = f"t{len(names)}" if value.name else ""
        names[region.result] = "y"
        proto: onnx.NodeProto = ir.to_proto(node)
        known = {attribute.name: attribute for attribute in proto.attribute}
        made = onnx.NodeProto(
            op_type=proto.op_type,
            input=["" if value is None else names[value] for value in node.inputs],
            output=[names[value] for value in node.outputs],
            attribute=[known[name] for name in sorted(known)],
        )
        for attribute in made.attribute:
            attribute.doc_string = ""
        protos.append(made)
    model = helper.make_model(
        helper.make_graph(
            protos,
            "island",
            [_float(names[value]) for value in region.inputs],
            [_float("y")],
            [_stored(value, names[value]) for value in region.constants],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _float(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _stored(value: ir.Value, name: str) -> TensorProto:
    array = constant(value)
    if array is None:
        raise ValueError(f"{value.name} is not constant")
    proto: TensorProto = ir.to_proto(ir.tensor(array, name=name))
    return proto


def layer_costs(region: Region, name: str, bits: LayerBits | None) -> tuple[LayerCost, ...]:
    """Return the cost of every convolution and linear layer of the island called `name`.

    Args:
        region: the island.
        name: also of its first layer; further ones are numbered.
        bits: of the first layer, None for floating point.
    """
    costs = []
    for index, (node, weight) in enumerate(region.weights()):
        shape = [int(n) for n in weight.shape or ()]  # type: ignore[arg-type]
        own = name if index == 0 else f"{name}/{index}"
        known = bits if index == 0 and bits is not None else FLOAT_BITS
        costs.append(LayerCost(own, _macs(node, shape), known))
    return tuple(costs)


def _macs(node: ir.Node, weight: list[int]) -> int:
    """Return the multiply-accumulates per image."""
    if node.op_type == "ConvTranspose":
        return prod(static_shape(node.inputs[0])) * prod(weight[1:])
    each = prod(weight[1:])
    if node.op_type == "MatMul":
        each = weight[-2] if len(weight) > 1 else weight[0]
    elif node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
        each = weight[0]
    return prod(static_shape(node.outputs[0])) * each


def weight_bytes(region: Region) -> int:
    """Return the bytes of the layers' weights as they are stored."""
    stored = 0
    for _, weight in region.weights():
        stack = [weight]
        while stack:
            value = stack.pop()
            array = constant(value)
            producer = value.producer()
            if array is not None:
                stored += array.nbytes if array.size > 1 else 0
            elif producer is not None:
                stack += [v for v in producer.inputs[:1] if v is not None]
    return stored
