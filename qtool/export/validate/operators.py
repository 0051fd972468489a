"""Operators as their schemas know them: element types, inputs, attributes.

An operator that neither ONNX nor `CONTRIB` has is refused.
"""

from collections.abc import Iterator, Sequence

import onnx
from onnx import defs

from qtool.core.dialect import MS
from qtool.core.errors import UnsupportedError, UserError
from qtool.export.validate.facts import Facts, place, type_name

_FLOAT, _INT = onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT
_INTS, _STRING = onnx.AttributeProto.INTS, onnx.AttributeProto.STRING
_POOL: dict[str, int] = {
    "auto_pad": _STRING, "ceil_mode": _INT, "channels_last": _INT, "count_include_pad": _INT,
    "kernel_shape": _INTS, "pads": _INTS, "strides": _INTS,
}  # fmt: skip
# Contrib operators have no schema in the onnx package: fewest and most inputs, attributes.
# ONNX Runtime 1.31 aborts the process on a QLinearLeakyRelu without its last zero point.
CONTRIB: dict[str, tuple[int, int, dict[str, int]]] = {
    "QLinearAdd": (7, 8, {}),
    "QLinearMul": (7, 8, {}),
    "QGemm": (6, 9, {"alpha": _FLOAT, "transA": _INT, "transB": _INT}),
    "QLinearGlobalAveragePool": (5, 5, {"channels_last": _INT}),
    "QLinearAveragePool": (5, 5, _POOL),
    "QLinearLeakyRelu": (5, 5, {"alpha": _FLOAT}),
    "QLinearSigmoid": (5, 5, {}),
    "QLinearConcat": (5, 2**16, {"axis": _INT}),
}


def check_contrib(model: onnx.ModelProto) -> None:
    """Check inputs and attributes of ONNX Runtime's own operators.

    Raises:
        UserError: the first violation found; names the node.
    """
    for index, node in enumerate(model.graph.node):
        if node.domain == MS:
            _check_contrib(node, place(node, index))


def check_operator(node: onnx.NodeProto, facts: Facts, where: str) -> None:
    """Check a node of ONNX's own domain or of ONNX Runtime's.

    Raises:
        UserError: an operator that is not known, or that is not used as its schema says.
    """
    if node.domain == MS:
        _check_contrib(node, where)
    else:
        _check_types(node, facts, where)


def _check_contrib(node: onnx.NodeProto, where: str) -> None:
    """Check inputs and attributes of an operator whose schema is ONNX Runtime's."""
    if node.op_type not in CONTRIB:
        raise UnsupportedError(f"{where}: this {MS} operator is not in the integer dialect")
    fewest, most, attributes = CONTRIB[node.op_type]
    if not fewest <= len(node.input) <= most:
        raise UserError(f"{where}: {len(node.input)} inputs; it takes {fewest} to {most}")
    if node.op_type == "QLinearConcat" and len(node.input) % 3 != 2:
        raise UserError(f"{where}: {len(node.input)} inputs; it takes 2, and 3 a tensor")
    for attribute in node.attribute:
        if attributes.get(attribute.name) != attribute.type:
            raise UserError(f"{where}: attribute {attribute.name} is unknown or mistyped")


def _check_types(node: onnx.NodeProto, facts: Facts, where: str) -> None:
    """Check element types against the operator's schema, type parameters included."""
    try:
        schema = defs.get_schema(node.op_type, facts.opset, node.domain)
    except defs.SchemaError:
        raise UserError(f"{where}: opset {facts.opset} has no such operator") from None
    bound: dict[str, str] = {}
    for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for formal, name in _pairs(formals, names):
            code = facts.types.get(name, 0)
            if not code:
                if name in facts.types:
                    raise UserError(f"{where}: tensor {name} has no type")
                continue
            found = type_name(code)
            if found not in formal.types:
                raise UserError(f"{where}: tensor {name} is {found}, which it does not take")
            if bound.setdefault(formal.type_str, found) != found and formal.is_homogeneous:
                raise UserError(
                    f"{where}: tensor {name} is {found}, beside {bound[formal.type_str]}"
                )


def _pairs(
    formals: Sequence[defs.OpSchema.FormalParameter], names: Sequence[str]
) -> Iterator[tuple[defs.OpSchema.FormalParameter, str]]:
    """Pair actual names with formal parameters; the last one may be variadic."""
    for index, name in enumerate(names):
        if name and formals:
            yield formals[min(index, len(formals) - 1)], name
