"""Foreign files at the edges of ONNX: right numbers, or one line that says what is wrong."""

import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from foreign_check import CONV, assert_same, differences, run, small
from foreign_files import codes, floats
from onnx import TensorProto, helper, numpy_helper

from passes.pipelines import DEBUG
from qtool.core.dialect import read_program
from qtool.core.errors import UserError
from qtool.export.foreign_import import read_foreign
from runtimes.reference import ReferenceRuntime

W = {"w": codes(0, 4, 4, 3, 3)}
NORM = CONV.replace("c =", "d =") + " c = BatchNormalization (d, g, b, m, {})"
FLAT = "f = Flatten (x)\n vf = DequantizeLinear <axis = 1> (k, ws)\n"
K = {"k": codes(1, 256, 4, top=20)}
SIDES = {"n": np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64)}
TABLE = np.random.default_rng(0).integers(0, 256, 256).astype(np.uint8)
NAN, INF = np.float32(np.nan), np.float32(np.inf)
Arrays = dict[str, np.ndarray]

RIGHT: dict[str, tuple[str, str, Arrays]] = {
    "scales of one element": (
        "p = QuantizeLinear (x, s1, z1)\n c = DequantizeLinear (p, s1, z1)", "1, 4, 8, 8",
        {"s1": np.array([0.03], np.float32), "z1": np.array([9], np.uint8)},
    ),
    "bounds behind a Pad that bound its 0": (
        CONV.replace("c =", "d =") + "e = Pad (d, n)\n c = Clip (e, low, high)", "1, 4, 11, 9",
        W | SIDES | {"low": np.float32(0.1307 * 3), "high": np.float32(0.1307 * 50)},
    ),
    "codes read on another grid": ("c = DequantizeLinear (q, t, z)", "1, 4, 8, 8", {}),
    "a product and a number": (
        FLAT + "d = MatMul (f, vf)\n c = Add (d, v)", "1, 4", K,
    ),
    "weights with Q behind them, their type an attribute": (
        "wq = QuantizeLinear <output_dtype = 3, axis = 0> (w, ws)\n"
        "wf = DequantizeLinear <axis = -4> (wq, ws)\n c = Conv (x, wf, b)", "1, 4, 6, 6",
        {"w": floats(0, 4, 4, 3, 3) / 10},
    ),
    "two turns": (
        "wh = DequantizeLinear <axis = 3> (w, ws)\n"
        "wt = Transpose <perm = [3, 0, 1, 2]> (wh)\n"
        "wf = Transpose <perm = [0, 3, 1, 2]> (wt)\n"
        "c = Conv (x, wf, b)", "1, 4, 6, 6", {"w": codes(0, 3, 3, 4, 4)},
    ),
    "a turn that turns nothing": (
        FLAT + "vt = Transpose <perm = [0, 1]> (vf)\n c = MatMul (f, vt)", "1, 4", K,
    ),
    "an int8 bias under BatchNorm": (
        CONV.replace("wf, b)", "wf, bf)").replace("c =", "bf = DequantizeLinear (bq, v)\n d =")
        + " c = BatchNormalization (d, g, b, m, u)", "1, 4, 8, 8",
        W | {"bq": np.array([100, -90, 3, 50], np.int8)},
    ),
    "BatchNorm behind a Gemm": (
        FLAT + "d = Gemm (f, vf, b)\n c = BatchNormalization (d, g, b, m, u)", "1, 4", K,
    ),
    "BatchNorm behind a turned Gemm": (
        "f = Flatten (x)\n vf = DequantizeLinear <axis = 0> (k, ws)\n"
        "d = Gemm <transB = 1> (f, vf)\n c = BatchNormalization (d, g, b, m, u)", "1, 4",
        {"k": codes(1, 4, 256, top=20)},
    ),
    "BatchNorm behind a MatMul of a turned weight": (
        "f = Flatten (x)\n vh = DequantizeLinear <axis = 0> (k, ws)\n"
        "vf = Transpose <perm = [1, 0]> (vh)\n"
        "d = MatMul (f, vf)\n c = BatchNormalization (d, g, b, m, u)", "1, 4",
        {"k": codes(1, 4, 256, top=20)},
    ),
    "Pad on int8 codes": (
        "p = QuantizeLinear (x, s, o)\n pp = Pad (p, n, j)\n c = DequantizeLinear (pp, s, o)",
        "1, 4, 11, 9", SIDES | {"o": np.asarray(np.int8(3)), "j": np.asarray(np.int8(-9))},
    ),
    "Pad on int8 codes, by default": (
        "p = QuantizeLinear (x, s, o)\n pp = Pad (p, n)\n c = DequantizeLinear (pp, s, o)",
        "1, 4, 11, 9", SIDES | {"o": np.asarray(np.int8(3))},
    ),
    "Pad without its optional value": ("c = Pad (x, n, )", "1, 4, 11, 9", SIDES),
    "Clip with one bound": (
        CONV.replace("c =", "d =") + " c = Clip (d, , v)", "1, 4, 8, 8", W,
    ),
    "Clip of what is unbounded": (
        CONV.replace("c =", "d =") + " c = Clip (d, v, j)", "1, 4, 8, 8",
        W | {"j": np.asarray(INF)},
    ),
    "int4 weights": (
        CONV, "1, 4, 8, 8", {"w": codes(0, 4, 4, 3, 3, top=7).astype(ml_dtypes.int4)},
    ),
    "a table of uint8 codes": (
        "n = Cast <to = 6> (q)\n k = Gather (j, n)\n c = DequantizeLinear (k, s, z)",
        "1, 4, 8, 8", {"j": TABLE},
    ),
    "a table of int8 codes": (
        "p = QuantizeLinear <output_dtype = 3> (x, s)\n n = Cast <to = 6> (p)\n"
        " k = Gather <axis = -1> (j, n)\n c = DequantizeLinear (k, s, z)", "1, 4, 8, 8",
        {"j": TABLE},
    ),
    "QLinearMatMul by column": (
        "f = Flatten (q)\n p = QLinearMatMul (f, s, z, k, ws, o, v, z)\n"
        " c = DequantizeLinear (p, v, z)", "1, 4", K | {"o": np.zeros(4, np.int8)},
    ),
    "QGemm, inputs first": (
        "f = Flatten (q)\n p = com.microsoft.QGemm (f, s, z, k, ws, o, , v, z)\n"
        " c = DequantizeLinear (p, v, z)", "1, 4", K | {"o": np.zeros(4, np.int8)},
    ),
    "QLinearConcat from the end": (
        "p = com.microsoft.QLinearConcat <axis = -1> (t, z, q, s, z, q, s, z)\n"
        " c = DequantizeLinear (p, t, z)", "1, 4, 8, 16", {},
    ),
    "QLinearLeakyRelu": (
        "p = com.microsoft.QLinearLeakyRelu (q, s, z, t, z)\n c = DequantizeLinear (p, t, z)",
        "1, 4, 8, 8", {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_right_values(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "1")  # no pass leaves a graph that means something else
    body, out, arrays = RIGHT[case]
    assert_same(small(body, out, **arrays), tmp_path)


@pytest.mark.parametrize("opset", range(13, 27))
def test_every_opset(opset: int, tmp_path: Path) -> None:
    assert_same(small(CONV, opset=opset, **W), tmp_path)


def test_a_scaled_swish_stays_scaled_in_an_island(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    onnx.save(small("c = Swish <alpha = 1.75> (x)", opset=24), path)
    program = read_program(read_foreign(path, allow_float=True)[0])
    x = np.random.default_rng(0).uniform(-3, 4, (1, 4, 8, 8)).astype(np.float32)
    on_grid = (np.clip(np.rint(x / np.float32(0.0213)), -128, 127) * 0.0213).astype(float)
    exact = on_grid / (1 + np.exp(-1.75 * on_grid))
    assert np.abs(ReferenceRuntime(program).run(x) - exact).max() <= 0.1307 * 0.51


REFUSED: dict[str, tuple[str, str, Arrays, str]] = {
    "NaN in a bound": (
        CONV.replace("c =", "d =") + " c = Clip (d, v, j)", "1, 4, 8, 8",
        W | {"j": np.asarray(NAN)}, "node c: Clip bound is no number",
    ),
    "NaN in a bias": (
        CONV.replace("wf, b)", "wf, j)"), "1, 4, 8, 8",
        W | {"j": np.array([0, NAN, 0, 0], np.float32)}, "layer c: channel 1 has bias nan",
    ),
    "NaN as an attribute": (
        "c = LeakyRelu <alpha = nan> (x)", "1, 4, 8, 8", {},
        "LeakyRelu with alpha nan; it must be finite",
    ),
    "a negative variance": (
        NORM.format("j"), "1, 4, 8, 8", W | {"j": np.array([-1, 1, 1, 1], np.float32)},
        "layer d: BatchNorm channel 0 scales its weights by nan",
    ),
    "a negative variance alone": (
        "c = BatchNormalization (x, g, b, m, j)", "1, 4, 8, 8",
        {"j": np.array([1, 1, -1, 1], np.float32)},
        "layer c: BatchNorm channel 2 multiplies by nan and adds nan; both must be finite",
    ),
    "bounds that cross": (
        CONV.replace("c =", "d =") + " c = Clip (d, j, v)", "1, 4, 8, 8",
        W | {"j": np.asarray(np.float32(3))}, "is empty",
    ),
    "weights around another zero point, BatchNorm behind": (
        NORM.format("u").replace("(w, ws)", "(w, ws, o)"), "1, 4, 8, 8",
        {"w": codes(0, 4, 4, 3, 3).view(np.uint8), "o": np.full(4, 120, np.uint8)},
        "layer d: uint8 weights with zero point 120; 128 is supported",
    ),
    "a computed bias under BatchNorm": (
        NORM.format("u").replace("wf, b)", "wf, bf)").replace("d =", "bf = Neg (b)\n d ="),
        "1, 4, 8, 8", W, "layer d: bias is computed at run time",
    ),
    "int16 weights": (
        CONV, "1, 4, 8, 8", {"w": codes(0, 4, 4, 3, 3).astype(np.int16)},
        "layer c: weights are no constant 8-bit integers",
    ),
    "a product of three dimensions": (
        "f = Reshape (x, n)\n vf = DequantizeLinear <axis = 1> (k, ws)\n c = MatMul (f, vf)",
        "1, 32, 4", {"k": codes(0, 8, 4), "n": np.array([1, 32, 8], np.int64)},
        "(N, features) is supported",
    ),
    "a product of a vector": (
        "f = Flatten (x)\n vf = DequantizeLinear (k, v)\n c = MatMul (f, vf)", "1",
        {"k": codes(0, 256)}, "1-D weight of MatMul",
    ),
    "a split into parts that nobody names": (
        "c = Split <axis = 1, num_outputs = 2> (x)", "1, 2, 8, 8", {},
        "operator Split has no integer form",
    ),
    "a pool of one dimension": (
        "f = Reshape (x, n)\n c = MaxPool <kernel_shape = [3]> (f)", "1, 4, 62",
        {"n": np.array([1, 4, 64], np.int64)}, "1-D MaxPool; 2-D is supported",
    ),
    "a pool of three": (
        "f = Reshape (x, n)\n c = MaxPool <kernel_shape = [3, 3, 2]> (f)", "1, 4, 2, 2, 3",
        {"n": np.array([1, 4, 4, 4, 4], np.int64)}, "3-D MaxPool; 2-D is supported",
    ),
    "QGemm's alpha": (
        "f = Flatten (q)\n p = com.microsoft.QGemm <alpha = 0.5> (f, s, z, k, ws, o, , v, z)\n"
        " c = DequantizeLinear (p, v, z)", "1, 4", K | {"o": np.zeros(4, np.int8)},
        "Gemm with alpha 0.5; 1.0 is supported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("error")
def test_refused_in_one_line(case: str, tmp_path: Path) -> None:
    body, out, arrays, text = REFUSED[case]
    assert_refused(small(body, out, **arrays), text, tmp_path)


def assert_refused(model: onnx.ModelProto, text: str, folder: Path) -> None:
    onnx.save(model, folder / "foreign.onnx")
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        read_foreign(folder / "foreign.onnx")
    assert "\n" not in str(caught.value) and "foreign.onnx" in str(caught.value)


def domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[3].domain = "mine"


def newer(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = onnx.defs.onnx_opset_version() + 1


def older(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 12


def attribute(model: onnx.ModelProto) -> None:
    model.graph.node[3].attribute.append(helper.make_attribute("novelty", 3))


def function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(
        helper.make_function("mine", "F", ["a"], ["b"], body, model.opset_import[:1])
    )


def sparse(model: onnx.ModelProto) -> None:
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "b"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    values = helper.make_tensor("b", TensorProto.FLOAT, [1], [0.5])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [2])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))


def branch(model: onnx.ModelProto) -> None:
    one, other = (
        helper.make_graph(
            [helper.make_node(kind, ["c"], [kind])], kind, [],
            [helper.make_tensor_value_info(kind, TensorProto.FLOAT, [1, 4, 8, 8])],
        )
        for kind in ("Identity", "Neg")
    )  # fmt: skip
    chosen = helper.make_node("If", ["yes"], ["e"], then_branch=one, else_branch=other)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(4, chosen)
    model.graph.node[5].input[0] = "e"


def codes_out(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "cq"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    del model.graph.node[-1]


CHANGES: dict[Callable[[onnx.ModelProto], None], str] = {
    domain: "unknown operator domain 'mine'",
    newer: "; one of 13 to",
    older: "opset 12; one of 13 to",
    attribute: "Unrecognized attribute: novelty for operator Conv",
    function: "model-local functions; inline them first",
    sparse: "tensor b is a sparse initializer; store it with all its zeros",
    branch: "operator If has no integer form",
    codes_out: "output cq is codes without a grid; put DequantizeLinear behind",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_forms_of_files(change: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = small(CONV, **W)
    change(model)
    assert_refused(model, CHANGES[change], tmp_path)


@pytest.mark.parametrize("value", [0.0, -0.02, np.nan, np.inf])
@pytest.mark.parametrize("name", ["s", "ws"])
def test_scales_that_are_none(name: str, value: float, tmp_path: Path) -> None:
    model = small(CONV, **W)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[-1] = value
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    assert_refused(model, f"scale {name} is not finite and positive", tmp_path)


def test_onnx_is_a_domain_of_its_own_name(tmp_path: Path) -> None:
    model = small(CONV, **W)
    model.opset_import[0].domain = "ai.onnx"
    assert differences(model, tmp_path).max() == 0


def test_a_bound_between_two_codes_is_said(tmp_path: Path) -> None:
    """Where nothing quantizes it: the layer behind reads the nearest value of the grid."""
    body = CONV.replace("c =", "p = Clip (x, , j)\n c =").replace("(x, wf", "(p, wf")
    model = small(body, j=np.asarray(np.float32(0.77)), **W)
    onnx.save(model, tmp_path / "foreign.onnx")
    _, notes = read_foreign(tmp_path / "foreign.onnx")
    assert notes == [
        "tensor p is cut off at 0.77, between two values of its grid; 0.7668 is taken"
    ]
    onnx.save(
        small(body, j=np.asarray(np.float32(0.0213 * 30)), **W), tmp_path / "foreign.onnx"
    )
    assert not read_foreign(tmp_path / "foreign.onnx")[1]


def test_a_bias_too_coarse_for_the_result_is_said(tmp_path: Path) -> None:
    body = CONV.replace("(w, ws)", "(w, j)").replace("<axis = 0> ", "")
    for scale, count in ((0.003, 0), (60.0, 1)):
        model = small(body, j=np.asarray(np.float32(scale)), **W)
        onnx.save(model, tmp_path / "foreign.onnx")
        _, notes = read_foreign(tmp_path / "foreign.onnx")
        assert len(notes) == count
    assert notes[0].startswith("layer c: the bias of channel 0 is rounded to a multiple of")


@pytest.mark.parametrize(
    ("body", "opset", "text"),
    [
        ("c = RMSNormalization (x, j)", 23, "operator RMSNormalization cannot stay in"),
        ('d = Cast <to = 10, round_mode = "down"> (x)\n c = Cast <to = 1> (d)', 24,
         "operator Cast with round_mode cannot stay in .*: islands are of opset 21"),
        ("c = Dropout (x, v, k)", 21, "operator Dropout cannot stay in .*: it is in training"),
    ],
)  # fmt: skip
def test_what_no_island_can_hold(body: str, opset: int, text: str, tmp_path: Path) -> None:
    arrays = {"j": np.ones(8, np.float32), "k": np.asarray(True)}
    onnx.save(small(body, opset=opset, **arrays), tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match=text):
        read_foreign(tmp_path / "foreign.onnx", allow_float=True)


def test_metadata_of_nodes_are_not_ours(tmp_path: Path) -> None:
    model = small(CONV, **W)
    for node in model.graph.node:
        for key in ("qtool.weight_bits", "qtool.activation_bits", "qtool.island"):
            node.metadata_props.add(key=key, value="many")
    assert_same(model, tmp_path)


def test_a_constant_is_no_batch(tmp_path: Path) -> None:
    """A weight reshaped to as many rows as the file's batch keeps them."""
    body = "w4 = Reshape (w, n)\n" + CONV.replace("(w,", "(w4,")
    shape = {"w": codes(0, 36, 4), "n": np.array([4, 4, 3, 3], np.int64)}
    model = small(body, "4, 4, 8, 8", **shape)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "foreign.onnx")
    program = read_program(read_foreign(tmp_path / "foreign.onnx")[0])
    x = np.random.default_rng(0).uniform(-3, 4, (4, 4, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(ReferenceRuntime(program).run(x), run(model, x))
