"""What is read of every operator that qtool knows: attributes, inputs, results.

An attribute or input is *used*, by whom the table says, or *fixed* at values that change
nothing; of results the first is known alone, unless the table says otherwise. A node with
anything else is refused by name, and so is an attribute that the table does not have. A test
holds the table against ONNX's schemas of every opset from 13 on.

Source: https://onnx.ai/onnx/operators; ONNX Runtime's docs/ContribOperators.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.core.dialect.nodes import MS, constant, label
from qtool.core.errors import UnsupportedError

Values = tuple[Any, ...]
LIKE_INPUT = (0, int(ir.DataType.FLOAT))  # a type: that of the scale, which is float32 here


@dataclass(frozen=True)
class Known:
    """What is read of one operator.

    Args:
        inputs: in order, those of the newest opset; the last stands for all that follow.
        used: attributes that are read: by whom, or why they change nothing.
        fixed: attributes and inputs that may be missing, or have one of these values, the
            first of which is the default; a list's elements each.
        results: how many results may be read; None for any number.
    """

    inputs: tuple[str, ...]
    used: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Values] = field(default_factory=dict)
    results: int | None = 1


_ONE, _TWO = ("X",), ("A", "B")
_SHAPES = "ONNX's shape inference"
_WINDOW = {
    "kernel_shape": "the weight's shape, or the pool", "strides": "the layer",
    "pads": "the layer",
}  # fmt: skip
_CONV = Known(
    ("X", "W", "B"),
    _WINDOW | {"dilations": "the layer", "group": "the layer"},
    {"auto_pad": ("NOTSET",)},
)
_ROUNDING = "float8 alone, which no integer has"
_QUANTIZE = Known(
    ("x", "y_scale", "y_zero_point"),
    {
        "axis": "scales one a channel: refused of activations, folded of constants",
        "output_dtype": "the codes' type", "saturate": _ROUNDING,
    },
    {"block_size": (0,), "precision": LIKE_INPUT},
)  # fmt: skip
_DEQUANTIZE = Known(
    ("x", "x_scale", "x_zero_point"),
    {"axis": "scales one a channel: must be the output channels' of a weight"},
    {"block_size": (0,), "output_dtype": LIKE_INPUT},
)
_MAX_POOL = Known(
    _ONE, _WINDOW,
    {"auto_pad": ("NOTSET",), "ceil_mode": (0,), "dilations": (1,), "storage_order": (0,)},
)  # fmt: skip
_AVERAGE_POOL = Known(
    _ONE, _WINDOW | {"count_include_pad": "the pool, where it has pads"},
    {"auto_pad": ("NOTSET",), "ceil_mode": (0,), "dilations": (1,)},
)  # fmt: skip
_BATCH_NORM = Known(
    ("X", "scale", "B", "input_mean", "input_var"),
    {"epsilon": "the affine", "momentum": "training alone"},
    {"training_mode": (0,)},
)
_RESIZE = Known(
    ("X", "roi", "scales", "sizes"),
    {
        "coordinate_transformation_mode": "the upsampling", "mode": "the upsampling",
        "nearest_mode": "the upsampling", "cubic_coeff_a": "cubic alone",
        "extrapolation_value": "tf_crop_and_resize alone",
    },
    {
        "antialias": (0,), "axes": (), "exclude_outside": (0,),
        "keep_aspect_ratio_policy": ("stretch",),
    },
)  # fmt: skip
_SOFTMAX = Known(("input",), {"axis": "must be the classes'"})

# Operators of ONNX; those that a float island holds are kept as they are and need no entry.
ONNX_OPERATORS: dict[str, Known] = {
    "Conv": _CONV,
    "Gemm": Known(
        ("A", "B", "C"), {"transB": "the weight's layout"},
        {"alpha": (1.0,), "beta": (1.0,), "transA": (0,)},
    ),
    "MatMul": Known(_TWO), "Add": Known(_TWO), "Mul": Known(_TWO),
    "GlobalAveragePool": Known(_ONE), "AveragePool": _AVERAGE_POOL,
    "BatchNormalization": _BATCH_NORM,
    "LeakyRelu": Known(_ONE, {"alpha": "the table"}),
    "HardSigmoid": Known(_ONE, {"alpha": "the table", "beta": "the table"}),
    "Sigmoid": Known(_ONE), "HardSwish": Known(_ONE), "Tanh": Known(("input",)),
    "Swish": Known(_ONE, {}, {"alpha": (1.0,)}),
    "Relu": Known(_ONE), "Clip": Known(("input", "min", "max")),
    "Flatten": Known(("input",), {"axis": _SHAPES}),
    "Reshape": Known(("data", "shape"), {"allowzero": _SHAPES}),
    "Transpose": Known(("data",), {"perm": "the movement"}),
    "Concat": Known(("inputs",), {"axis": "the movement"}),
    "Slice": Known(("data", "starts", "ends", "axes", "steps")),
    "Pad": Known(
        ("data", "pads", "constant_value", "axes"), {"mode": "constant alone"}, {"axes": ()}
    ),
    "Resize": _RESIZE, "MaxPool": _MAX_POOL,
    "Identity": Known(("input",)),
    "Dropout": Known(
        ("data", "ratio", "training_mode"), {"seed": "training alone"},
        {"training_mode": (False,)},
    ),
    "QuantizeLinear": _QUANTIZE, "DequantizeLinear": _DEQUANTIZE,
    "QLinearConv": Known(
        ("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale",
         "y_zero_point", "B"), _CONV.used, _CONV.fixed,
    ),
    "QLinearMatMul": Known(
        ("a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale",
         "y_zero_point"),
    ),
    "Split": Known(
        ("input", "split"), {"axis": "the slices", "num_outputs": _SHAPES}, results=None
    ),
    "ReduceMean": Known(
        ("data", "axes"),
        {
            "axes": "respelled as an input", "keepdims": "the pool's shape",
            "noop_with_empty_axes": "no axes, which stays as it is",
        },
    ),
    "Softmax": _SOFTMAX, "LogSoftmax": _SOFTMAX,
    "Cast": Known(
        ("input",),
        {"to": "the index of a table, packed weights", "saturate": _ROUNDING,
         "round_mode": _ROUNDING},
    ),
    "Gather": Known(("data", "indices"), {"axis": "packed weights"}),
    "MatMulInteger": Known(("A", "B", "a_zero_point", "b_zero_point")),
}  # fmt: skip
_GRID = ("scale", "zero_point")
# Those of ONNX Runtime, com.microsoft.
CONTRIB_OPERATORS: dict[str, Known] = {
    "QLinearAdd": Known(("A", *_GRID, "B", *_GRID, *_GRID)),
    "QLinearMul": Known(("A", *_GRID, "B", *_GRID, *_GRID)),
    "QGemm": Known(
        ("A", *_GRID, "B", *_GRID, "C", *_GRID), {"transB": "the weight's layout"},
        {"alpha": (1.0,), "transA": (0,)},
    ),
    "QLinearGlobalAveragePool": Known(("X", *_GRID, *_GRID), {}, {"channels_last": (0,)}),
    "QLinearAveragePool": Known(
        ("X", *_GRID, *_GRID), _AVERAGE_POOL.used,
        {"auto_pad": ("NOTSET",), "ceil_mode": (0,), "channels_last": (0,)},
    ),
    "QLinearLeakyRelu": Known(("X", *_GRID, *_GRID), {"alpha": "the table"}),
    "QLinearSigmoid": Known(("X", *_GRID, *_GRID)),
    "QLinearConcat": Known((*_GRID, "inputs"), {"axis": "the movement"}),
}  # fmt: skip
_VARIADIC = ("Concat", "QLinearConcat")


def require_plain(node: ir.Node, where: str = "") -> None:
    """Refuse a node with an attribute, input or result that nobody reads.

    Args:
        node: one of an operator of the table; others are not looked at.
        where: names it; the node's own name, or its result's.

    Raises:
        UnsupportedError: names operator, attribute and value, and the value that is supported.
    """
    for fault in faults(node):
        raise UnsupportedError(f"{where or label(node)}: {node.op_type} with {fault}")


def is_plain(node: ir.Node) -> bool:
    """True for a node of which everything is read."""
    return not any(faults(node))


def faults(node: ir.Node) -> Iterator[str]:
    """Yield what `node` has beyond what is read of it, as "NAME VALUE; ... is supported"."""
    known = (CONTRIB_OPERATORS if node.domain == MS else ONNX_OPERATORS).get(node.op_type)
    if known is None:
        return
    for name, attribute in node.attributes.items():
        allowed, got = known.fixed.get(name), attribute.value
        if name not in known.used and (allowed is None or not _among(got, allowed)):
            yield _fault(f"{name} {_show(got)}", allowed)
        elif isinstance(got, float) and not np.isfinite(got):
            yield f"{name} {got}; it must be finite"
    for index, value in enumerate(node.inputs):
        if index >= len(known.inputs):
            if node.op_type not in _VARIADIC:
                yield f"{len(node.inputs)} inputs; {len(known.inputs)} are supported"
            return
        name = known.inputs[index]
        if value is not None and name in known.fixed:
            array = constant(value)
            if array is None or not _among(array.reshape(-1).tolist(), known.fixed[name]):
                got = "computed at run time" if array is None else _show(array.tolist())
                yield _fault(f"{name} {got}", known.fixed[name])
    for index, result in enumerate(node.outputs[known.results :] if known.results else ()):
        if result.uses() or result.is_graph_output():
            yield f"result {index + 2} that is read; the first one is supported"


def _among(got: Any, allowed: Values) -> bool:
    """True when `got`, or every element of it, is one of `allowed`."""
    items = got if isinstance(got, list | tuple) else [got]
    return all(any(np.array_equal(item, value) for value in allowed) for item in items)


def _show(got: Any) -> str:
    return str(list(got) if isinstance(got, tuple) else got)[:40]


def _fault(what: str, allowed: Values | None) -> str:
    return f"{what}; {allowed[0]} is supported" if allowed else f"{what}; it is not supported"
