"""Every attribute and input of ONNX's operators is read or refused by name."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from foreign_check import assert_same, small
from foreign_files import codes
from onnx import defs, helper
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_state

from passes.adaptive.canonicalize import _REWRITES
from passes.importing.expand_qlinear import _LAYERS, _PLAIN
from passes.importing.fold_constants import _FUNCTIONS
from passes.lower.moves import MOVES
from passes.lower.operators import ACTIVATIONS, OPERATORS
from qtool.core.dialect import MS, NODE_TYPES, require_plain
from qtool.core.dialect.attributes import CONTRIB_OPERATORS, ONNX_OPERATORS, Known
from qtool.core.errors import UnsupportedError, UserError
from qtool.export.foreign_import import read_foreign
from qtool.export.validate.operators import CONTRIB
from qtool.export.validate.storage import OLDEST_OPSET

# Defaults that ONNX spells by leaving the attribute out.
UNSET = {("MaxPool", "dilations"), ("AveragePool", "dilations"), ("Resize", "axes")}


def schemas(op_type: str) -> Iterator[defs.OpSchema]:
    """Every version of an operator that a supported opset has."""
    versions = sorted(
        (
            s
            for s in defs.get_all_schemas_with_history()
            if (s.name, s.domain) == (op_type, "")
        ),
        key=lambda schema: schema.since_version,
    )
    for schema, after in zip(versions, [*versions[1:], None], strict=True):
        if after is None or after.since_version > OLDEST_OPSET:
            yield schema


def unknown(op_type: str, known: Known) -> Iterator[str]:
    """Say what the schemas of an operator have and the table has not."""
    for schema in schemas(op_type):
        where = f"{op_type} of opset {schema.since_version}"
        for name in schema.attributes:
            if name not in known.used and name not in known.fixed:
                yield f"{where}: attribute {name}"
        if len(schema.inputs) > len(known.inputs):
            yield f"{where}: input {schema.inputs[len(known.inputs)].name}"
        if known.results is not None and not schema.outputs:
            yield f"{where}: no result"


@pytest.mark.parametrize("op_type", ONNX_OPERATORS)
def test_the_table_knows_every_attribute_of_every_opset(op_type: str) -> None:
    known = ONNX_OPERATORS[op_type]
    assert list(schemas(op_type)), "no such operator"
    assert not list(unknown(op_type, known))
    newest = defs.get_schema(op_type)
    names = [formal.name for formal in newest.inputs]
    assert list(known.inputs) == names or op_type == "ReduceMean"
    every = {name for schema in schemas(op_type) for name in schema.attributes}
    assert set(known.used) | set(known.fixed) <= every | set(names)
    assert not set(known.used) & set(known.fixed)


def test_a_new_attribute_is_noticed() -> None:
    without = Known(("X", "W"), {"group": "the layer"})
    found = list(unknown("Conv", without))
    assert "Conv of opset 22: attribute auto_pad" in found
    assert "Conv of opset 22: input B" in found


@pytest.mark.parametrize("op_type", ONNX_OPERATORS)
def test_fixed_values_begin_with_onnx_default(op_type: str) -> None:
    for schema in schemas(op_type):
        for name, allowed in ONNX_OPERATORS[op_type].fixed.items():
            if name not in schema.attributes or (op_type, name) in UNSET:
                continue
            default = helper.get_attribute_value(schema.attributes[name].default_value)
            default = default.decode() if isinstance(default, bytes) else default
            assert default == allowed[0], name


def test_the_table_of_contrib_operators_is_the_one_that_files_are_held_to() -> None:
    assert CONTRIB_OPERATORS.keys() == CONTRIB.keys()
    for name, known in CONTRIB_OPERATORS.items():
        assert set(CONTRIB[name][2]) == set(known.used) | set(known.fixed), name


def test_the_table_knows_every_attribute_of_onnx_runtime() -> None:
    found = {
        schema.name: schema
        for schema in onnxruntime_state.get_all_operator_schema()
        if schema.domain == MS and schema.name in CONTRIB_OPERATORS
    }
    assert found.keys() == CONTRIB_OPERATORS.keys()
    for name, schema in found.items():
        known = CONTRIB_OPERATORS[name]
        assert set(schema.attributes) == set(known.used) | set(known.fixed), name
        assert len(schema.inputs) == len(known.inputs), name


def test_every_operator_that_is_read_is_in_the_table() -> None:
    known = ONNX_OPERATORS.keys() | CONTRIB_OPERATORS.keys()
    assert {*OPERATORS, *MOVES, *ACTIVATIONS, *NODE_TYPES} <= known
    rewritten = {op_type for op_type, *_ in (*_PLAIN.values(), *_LAYERS.values())}
    assert {*rewritten, *_REWRITES, *_FUNCTIONS} <= known


OTHERS = {
    "auto_pad": "VALID", "keep_aspect_ratio_policy": "not_larger", "axes": [2, 3],
    "dilations": [1, 2], "alpha": 0.75, "beta": 0.75,
}  # fmt: skip


@pytest.mark.parametrize("op_type", ONNX_OPERATORS | CONTRIB_OPERATORS)
def test_every_fixed_attribute_is_refused_at_another_value(op_type: str) -> None:
    known = (ONNX_OPERATORS | CONTRIB_OPERATORS)[op_type]
    domain = MS if op_type in CONTRIB_OPERATORS else ""
    for name in [*known.fixed, "novelty"]:
        if name in known.inputs:
            continue  # by value below
        value = OTHERS.get(name, 7)
        node = ir.node(op_type, [ir.Value(name="x")], {name: value}, domain=domain, name="n")
        text = re.escape(f"node n: {op_type} with {name} {value}; ")
        with pytest.raises(UnsupportedError, match=f"^{text}.* supported$"):
            require_plain(node)
    for name, allowed in known.fixed.items():
        if name not in known.inputs and allowed:
            usual = [allowed[0]] * 2 if name == "dilations" else allowed[0]
            require_plain(ir.node(op_type, [], {name: usual}, domain=domain))


# By value: ONNX Runtime runs the original, the reference what was imported.

CONV = "wf = DequantizeLinear <axis = 0> (w, ws)\n c = Conv <{}> (x, wf, b)"
POOL = "kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 0, 1]"
LINEAR = "f = Flatten (x)\n vf = DequantizeLinear <axis = {}> (k, ws)\n c = {} (f, vf)"
# What is used, away from its default: case: (lines, shape of the result, constants).
USED: dict[str, tuple[str, str, dict[str, np.ndarray]]] = {
    "Conv": (
        CONV.format("strides = [2, 1], pads = [0, 1, 2, 1], dilations = [2, 1], group = 2"),
        "1, 4, 3, 8", {"w": codes(0, 4, 2, 3, 3)},
    ),
    "MaxPool": (f"c = MaxPool <{POOL}> (x)", "1, 4, 4, 8", {}),
    "AveragePool": (f"c = AveragePool <{POOL}, count_include_pad = 1> (x)", "1, 4, 4, 8", {}),
    "BatchNormalization": (
        "c = BatchNormalization <epsilon = 0.5, momentum = 0.1> (x, g, b, m, u)",
        "1, 4, 8, 8", {},
    ),
    "BatchNormalization, folded": (
        CONV.format("pads = [1, 1, 1, 1]").replace("c =", "d =")
        + "\n c = BatchNormalization <epsilon = 0.5> (d, g, b, m, u)",
        "1, 4, 8, 8", {"w": codes(0, 4, 4, 3, 3)},
    ),
    "Gemm": (
        LINEAR.format(-2, "Gemm <transB = 1>"), "1, 4", {"k": codes(0, 4, 256, top=20)},
    ),
    "Gemm, inputs first": (LINEAR.format(1, "Gemm"), "1, 4", {"k": codes(0, 256, 4, top=20)}),
    "MatMul": (LINEAR.format(-1, "MatMul"), "1, 4", {"k": codes(0, 256, 4, top=20)}),
    "MatMul, turned": (
        LINEAR.format(0, "MatMul").replace("c =", "vt = Transpose (vf)\n c =")
        .replace("(f, vf)", "(f, vt)"), "1, 4", {"k": codes(0, 4, 256, top=20)},
    ),
    "Conv, turned": (
        CONV.format("group = 1").replace("axis = 0", "axis = 3").replace(
            " c =", "wt = Transpose <perm = [3, 2, 0, 1]> (wf)\n c ="
        ).replace("wf, b)", "wt, b)"), "1, 4, 6, 6", {"w": codes(0, 3, 3, 4, 4)},
    ),
    "LeakyRelu": ("c = LeakyRelu <alpha = 0.3> (x)", "1, 4, 8, 8", {}),
    "HardSigmoid": ("c = HardSigmoid <alpha = 0.3, beta = 0.4> (x)", "1, 4, 8, 8", {}),
    "Flatten": ("c = Flatten <axis = -3> (x)", "1, 256", {}),
    "Reshape": (
        "c = Reshape <allowzero = 1> (x, n)", "1, 8, 32",
        {"n": np.array([1, 8, -1], np.int64)},
    ),
    "Transpose": ("c = Transpose <perm = [0, 2, 3, 1]> (x)", "1, 8, 8, 4", {}),
    "Concat": ("c = Concat <axis = -2> (x, x)", "1, 4, 16, 8", {}),
    "Slice": (
        "c = Slice (x, n, e, a, d)", "1, 4, 2, 2",
        {"n": np.array([-7, 1], np.int64), "e": np.array([6, -3], np.int64),
         "a": np.array([-1, 2], np.int64), "d": np.array([3, 2], np.int64)},
    ),
    "Pad": (
        "c = Pad <mode = \"constant\"> (x, n)", "1, 4, 11, 9",
        {"n": np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64)},
    ),
    "Pad of codes": (
        "p = Pad (q, n)\n c = DequantizeLinear (p, s, z)", "1, 4, 11, 9",
        {"n": np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64)},
    ),
    "Resize": (
        'c = Resize <coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
        " (x, , n)", "1, 4, 16, 24", {"n": np.array([1, 1, 2, 3], np.float32)},
    ),
    "Split": (
        "c1, c2 = Split <axis = -3, num_outputs = 2> (x)\n c = Concat <axis = 1> (c2, c1)",
        "1, 4, 8, 8", {},
    ),
    "ReduceMean": (
        "c = ReduceMean <keepdims = 0, noop_with_empty_axes = 1> (x, n)", "1, 4",
        {"n": np.array([-1, 2], np.int64)},
    ),
    "Dropout": (
        "c = Dropout <seed = 3> (x, v, n)", "1, 4, 8, 8", {"n": np.asarray(False)},
    ),
    "output_dtype": (
        "p = QuantizeLinear <output_dtype = 3, saturate = 0> (x, s)\n"
        " c = DequantizeLinear (p, s)", "1, 4, 8, 8", {},
    ),
    "uint8 weights": (
        "wf = DequantizeLinear (w, v, z)\n c = Conv (x, wf, b)", "1, 4, 6, 6",
        {"w": codes(0, 4, 4, 3, 3).view(np.uint8)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", USED)
def test_what_is_used_is_used_rightly(case: str, tmp_path: Path) -> None:
    body, out, arrays = USED[case]
    assert_same(small(body, out, **arrays), tmp_path)


# What is fixed, at another value: (lines, shape, constants, text of the refusal).
WINDOW = "kernel_shape = [2, 2], strides = [2, 2]"
REFUSED: dict[str, tuple[str, str, dict[str, np.ndarray], str]] = {
    "auto_pad": (
        CONV.format('auto_pad = "SAME_UPPER"'), "1, 4, 8, 8", {"w": codes(0, 4, 4, 3, 3)},
        "layer c: Conv with auto_pad SAME_UPPER; NOTSET is supported",
    ),
    "ceil_mode": (
        f"c = AveragePool <{WINDOW}, ceil_mode = 1> (x)", "1, 4, 4, 4", {},
        "layer c: AveragePool with ceil_mode 1; 0 is supported",
    ),
    "dilations": (
        f"c = AveragePool <{WINDOW}, dilations = [2, 1]> (x)", "1, 4, 3, 4", {},
        "layer c: AveragePool with dilations [2, 1]; 1 is supported",
    ),
    "storage_order": (
        f"c = MaxPool <{WINDOW}, storage_order = 1> (x)", "1, 4, 4, 4", {},
        "MaxPool with storage_order 1; 0 is supported",
    ),
    "indices": (
        f"c0, n = MaxPool <{WINDOW}> (x)\n d = Cast <to = 1> (n)\n c = Add (c0, d)",
        "1, 4, 4, 4", {},
        "node c0: MaxPool with result 2 that is read; the first one is supported",
    ),
    "alpha": (
        LINEAR.format(1, "Gemm <alpha = 0.5>"), "1, 4", {"k": codes(0, 256, 4)},
        "layer c: Gemm with alpha 0.5; 1.0 is supported",
    ),
    "training_mode": (
        "c = Dropout (x, v, n)", "1, 4, 8, 8", {"n": np.asarray(True)},
        "Dropout with training_mode True; False is supported",
    ),
    "BatchNorm's": (
        "c, r1, r2 = BatchNormalization <training_mode = 1> (x, g, b, m, u)", "1, 4, 8, 8",
        {}, "layer c: BatchNormalization with training_mode 1; 0 is supported",
    ),
    "pad axes": (
        "c = Pad (x, n, , a)", "1, 4, 10, 10",
        {"n": np.ones(4, np.int64), "a": np.array([2, 3], np.int64)},
        "Pad with axes [2, 3]; it is not supported",
    ),
    "pad mode": (
        'c = Pad <mode = "edge"> (x, n)', "1, 4, 8, 10",
        {"n": np.array([0, 0, 0, 1, 0, 0, 0, 1], np.int64)}, "Pad with mode edge",
    ),
    "antialias": (
        "c = Resize <antialias = 1> (x, , n)", "1, 4, 16, 16",
        {"n": np.array([1, 1, 2, 2], np.float32)}, "Resize with antialias 1; 0 is supported",
    ),
    "resize axes": (
        'c = Resize <axes = [2, 3], coordinate_transformation_mode = "asymmetric", '
        'nearest_mode = "floor"> (x, , n)', "1, 4, 8, 16",
        {"n": np.array([1, 2], np.float32)}, "Resize with axes [2, 3]; it is not supported",
    ),
    "keep_aspect_ratio_policy": (
        'c = Resize <keep_aspect_ratio_policy = "not_larger"> (x, , , n)', "1, 4, 16, 16",
        {"n": np.array([1, 4, 16, 16], np.int64)},
        "Resize with keep_aspect_ratio_policy not_larger; stretch is supported",
    ),
    "block_size": (
        "p = QuantizeLinear <block_size = 2> (x, s, z)\n c = DequantizeLinear (p, s, z)",
        "1, 4, 8, 8", {}, "node p: QuantizeLinear with block_size 2; 0 is supported",
    ),
    "uint16": (
        "p = QuantizeLinear <output_dtype = 4> (x, s)\n c = DequantizeLinear (p, s)",
        "1, 4, 8, 8", {}, "tensor x: uint16; uint8 and int8 are supported",
    ),
    "scales along the inputs": (
        CONV.format("group = 1").replace("axis = 0", "axis = 1"), "1, 4, 6, 6",
        {"w": codes(0, 4, 4, 3, 3)},
        "weight scales along axis 1; those of the outputs, axis 0 of Conv, are supported",
    ),
    "scales along a Gemm's inputs": (
        LINEAR.format(0, "Gemm").replace(
            "f = Flatten (x)",
            "p = GlobalAveragePool (x)\n pq = QuantizeLinear (p, s, z)\n"
            " pf = DequantizeLinear (pq, s, z)\n f = Flatten (pf)"
        ), "1, 4", {"k": codes(0, 4, 4)}, "axis 1 of Gemm, are supported",
    ),
    "an activation's scales": (
        "p = QuantizeLinear (x, ws, o)\n c = DequantizeLinear (p, ws, o)",
        "1, 4, 8, 8", {"o": np.zeros(4, np.uint8)}, "expected a constant scalar",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_used_is_refused_by_name(case: str, tmp_path: Path) -> None:
    body, out, arrays, text = REFUSED[case]
    path = tmp_path / "foreign.onnx"
    onnx.save(small(body, out, **arrays), path)
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value)


def test_a_final_softmax_over_another_axis_stays(tmp_path: Path) -> None:
    """Without it another class could be the largest."""
    model = small("c = Flatten (x)", "1, 256")
    model.graph.node[-1].output[0] = "d"
    model.graph.node.append(helper.make_node("Softmax", ["d"], ["y"], axis=0))
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(UnsupportedError, match="output y is the float result of Softmax"):
        read_foreign(tmp_path / "foreign.onnx")
