"""Each pass on graphs written as text: it fires, keeps numbers, refuses, is idempotent."""

import numpy as np
import onnx_ir as ir
import pytest
from conftest import graph

from passes.adaptive.canonicalize import Canonicalize
from passes.adaptive.fold_batchnorm import FoldBatchNorm
from passes.adaptive.freeze_weights import FreezeWeights
from passes.adaptive.quantize_glue import QuantizeGlue
from passes.adaptive.resolve_bits import ResolveBits
from passes.emit.onnx.onnx_qdq import emit_onnx_qdq
from passes.importing.import_qdq import ImportQDQ
from passes.lower.lower_to_integer import LowerToInteger
from passes.pipelines import lower
from qtool.core.accumulator import Layer, fit_accumulator
from qtool.core.dialect import Conv, Gemm, constant, read_program
from qtool.core.errors import UnsupportedError, UserError
from qtool.core.selection import LayerBits, Selection

HEADER = '<ir_version: 10, opset_import: ["" : 21, "qtool" : 1]>'


def fq(out: str, x: str, steps: str, name: str, role: str, bits: str, signed: int = 0) -> str:
    """One FakeQuant node as text."""
    return (
        f'{out} = qtool.FakeQuant<name="{name}", role="{role}", bits=[{bits}], '
        f"signed={signed}>({x}, {steps})\n"
    )


def net(gamma: str = "1.5, -0.5", tail: str = "", cap: str = "6.0") -> ir.Model:
    """Quantized conv -> BatchNorm -> Clip(0, cap) -> grid, with 8/4/3-bit candidates."""
    nodes = (
        fq("xq", "x", "sx", "conv", "activation", "8, 4, 3")
        + fq("wq", "w", "sw", "conv", "weight", "4", 1)
        + "c = Conv<pads=[1, 1, 1, 1], kernel_shape=[3, 3]>(xq, wq)\n"
        + "b = BatchNormalization(c, gamma, beta, mean, var)\n"
        + "r = Clip(b, zero, cap)\n"
        + fq("y", "r", "sy", "glue_y", "output", "8")
        + tail
    )
    model = graph(
        f"""{HEADER} g (float[N, 1, 5, 5] x) => (float[N, 2, 5, 5] y)
        <float[3, 1] sx = {{0.01, 0.1, 0.25}}, float[1, 2] sw = {{0.25, 0.5}},
         float[1, 1] sy = {{0.0625}}, float zero = {{0.0}}, float cap = {{{cap}}},
         float[2] gamma = {{{gamma}}}, float[2] beta = {{0.25, 1.0}},
         float[2] mean = {{0.5, -1.0}}, float[2] var = {{1.0, 4.0}},
         float[2, 1, 3, 3] w = {{1, -2, 0.5, 0.125, 0.375, -0.1, 2, 9, -9,
                                 0.25, 0.75, -0.25, -0.75, 1.25, 3, -4, 0, 1}}>
        {{ {nodes} }}"""
    )
    for node in model.graph:  # the checker knows no shapes behind custom operators
        shape = {"xq": [1, 5, 5], "wq": None}.get(str(node.outputs[0].name), [2, 5, 5])
        if shape:
            node.outputs[0].shape = ir.Shape([ir.SymbolicDim("N"), *shape])
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return model


def reason(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The innermost message: onnx-ir wraps what a pass raises."""
    cause: BaseException = error.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause)


def first(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


def test_resolve_bits_keeps_the_selected_candidate() -> None:
    model = net()
    ResolveBits(Selection({"conv": LayerBits(4, 3)}))(model)
    node = first(model, "FakeQuant")
    assert tuple(node.attributes["bits"].as_ints()) == (3,)
    steps = constant(node.inputs[1])
    assert steps is not None and steps.tolist() == [[0.25]]


def test_resolve_bits_refuses_untrained_bits() -> None:
    with pytest.raises(UserError) as error:
        ResolveBits(Selection({"conv": LayerBits(4, 5)}))(net())
    assert reason(error) == "layer conv: activation bits 5 were not trained; trained: 8, 4, 3"


def test_resolve_bits_refuses_a_layer_that_does_not_exist() -> None:
    with pytest.raises(UserError) as error:
        ResolveBits(Selection({"cnov": LayerBits(4, 4)}))(net())
    assert reason(error) == "unknown layer 'cnov': did you mean conv?"


def test_uniform_bits_leave_first_and_last_layer_as_trained() -> None:
    model = net()
    ResolveBits(Selection(default=LayerBits(8, 8)))(model)
    weight = next(n for n in model.graph if n.attributes.get_string("role", "") == "weight")
    assert tuple(weight.attributes["bits"].as_ints()) == (4,)


def test_freeze_weights_rounds_half_to_even_and_saturates_narrowly() -> None:
    model = net()
    FreezeWeights()(model)
    codes = constant(first(model, "DequantizeLinear").inputs[0])
    # Held times 8.
    # channel 0 in steps of 0.25: 4, -8 -> -7, 2, 0.5 -> 0, 1.5 -> 2, -0.4, 8 -> 7, 36 -> 7
    assert codes is not None
    assert (codes[0].reshape(-1) / 8).tolist() == [4, -7, 2, 0, 2, 0, 7, 7, -7]
    # channel 1 in steps of 0.5: ties 0.5 -> 0, 1.5 -> 2, -0.5 -> 0, -1.5 -> -2, 2.5 -> 2
    assert (codes[1].reshape(-1) / 8).tolist() == [0, 2, 0, -2, 2, 6, -7, 0, 2]


def test_fold_flips_codes_under_negative_gamma_and_keeps_them_otherwise() -> None:
    model = net()
    FreezeWeights()(model)
    before = constant(first(model, "DequantizeLinear").inputs[0])
    FoldBatchNorm()(model)
    node = first(model, "DequantizeLinear")
    after, scale = constant(node.inputs[0]), constant(node.inputs[1])
    assert before is not None and after is not None and scale is not None
    assert np.array_equal(after[0], before[0])
    assert np.array_equal(after[1], -before[1])
    ratio = np.abs([1.5, -0.5]) / np.sqrt(np.array([1.0, 4.0]) + 1e-5)
    assert np.array_equal(scale, (np.float32([0.25, 0.5]) / 8 * ratio).astype(np.float32))
    bias = constant(first(model, "Conv").inputs[2])
    r = np.array([1.5, -0.5]) / np.sqrt(np.array([1.0, 4.0]) + 1e-5)
    expected = np.array([0.25, 1.0]) - np.array([0.5, -1.0]) * r
    assert bias is not None and np.array_equal(bias, expected.astype(np.float32))


def test_fold_with_gamma_zero_leaves_the_constant_beta() -> None:
    dialect = lower(net(gamma="0.0, 1.0"), Selection())
    conv = next(op for op in read_program(dialect).ops if isinstance(op, Conv))
    assert not conv.w_OIHW[0].any()
    unit = float(np.float32(conv.x.scale) * conv.w_scale[0])
    assert conv.bias[0] * unit == pytest.approx(0.25, rel=1e-6)


def test_fold_refuses_batchnorm_after_something_else() -> None:
    model = graph(
        f"""{HEADER} g (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y)
        <float[1] one = {{1.0}}> {{ r = Relu(x)
        y = BatchNormalization(r, one, one, one, one) }}"""
    )
    with pytest.raises(UserError) as error:
        FoldBatchNorm()(model)
    assert (
        "BatchNorm after Relu; only Conv, or a linear layer of (N, features), can absorb it"
        in reason(error)
    )


def test_clip_becomes_an_integer_window() -> None:
    dialect = lower(net(cap="6.0"), Selection())
    conv = next(op for op in read_program(dialect).ops if isinstance(op, Conv))
    assert (conv.lo, conv.hi) == (0, 96)  # 6.0 / 0.0625


def test_sub_byte_input_is_clipped_behind_quantize() -> None:
    dialect = lower(net(), Selection({"conv": LayerBits(4, 3)}))
    quantize = read_program(dialect).ops[0]
    assert (quantize.lo, quantize.hi, float(quantize.grid.scale)) == (0, 7, 0.25)


def test_canonicalize_names_global_pooling() -> None:
    model = graph(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 3, 4, 4] x)
        => (float[N, 3, 1, 1] y) <int64[2] axes = {-1, 2}>
        { y = ReduceMean<keepdims=1>(x, axes) }"""
    )
    assert Canonicalize()(model).modified
    assert [node.op_type for node in model.graph] == ["GlobalAveragePool"]


def test_glue_moves_a_grid_before_flatten() -> None:
    nodes = (
        fq("q", "x", "s", "a", "glue", "8")
        + "p = GlobalAveragePool(q)\nf = Flatten(p)\n"
        + fq("y", "f", "s", "b", "output", "8")
    )
    model = graph(
        f"{HEADER} g (float[N, 1, 2, 2] x) => (float[N, 1] y) "
        f"<float[1, 1] s = {{0.5}}> {{ {nodes} }}"
    )
    assert QuantizeGlue()(model).modified
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["FakeQuant", "GlobalAveragePool", "FakeQuant", "Flatten"]
    assert model.graph.outputs[0].producer() is first(model, "Flatten")


def between_grids(line: str, sx: float = 0.5, sy: float = 0.5, shape: str = "4") -> ir.Model:
    """`line` computes t from q, the quantized x; y is t on another grid."""
    nodes = fq("q", "x", "sx", "a", "glue", "8") + f"{line}\n"
    nodes += fq("y", "t", "sy", "b", "output", "8")
    model = graph(
        f"{HEADER} g (float[N, {shape}] x) => (float[N, {shape}] y) "
        f"<float[1, 1] sx = {{{sx}}}, float[1, 1] sy = {{{sy}}}> {{ {nodes} }}"
    )
    for node in model.graph:
        node.outputs[0].shape = model.graph.inputs[0].shape
    return model


def test_a_grid_that_comes_to_stand_behind_data_movement_moves_on() -> None:
    lines = "u = Concat<axis=1>(q, q)\n" + fq("v", "u", "sy", "c", "glue", "8")
    lines += "w = Concat<axis=1>(v, q)\n" + fq("t", "w", "sx", "d", "glue", "8")
    model = between_grids(lines)
    for name, size in {"u": 8, "v": 8, "w": 12, "t": 12, "y": 12}.items():
        node = next(node for node in model.graph if node.outputs[0].name == name)
        node.outputs[0].shape = ir.Shape([ir.SymbolicDim("N"), size])
    assert QuantizeGlue()(model).modified
    sources = [n.inputs[0].producer() for n in model.graph if n.op_type == "FakeQuant"]
    assert [node.op_type for node in sources if node is not None] == ["FakeQuant"] * 8
    assert not QuantizeGlue()(model).modified


def test_glue_refuses_an_edge_without_grid() -> None:
    with pytest.raises(UserError) as error:
        QuantizeGlue()(between_grids("t = Add(q, x)"))
    assert "Add reads x in floating point; no quantizer stands on that edge" in reason(error)


def test_lower_refuses_an_operator_without_integer_form() -> None:
    with pytest.raises(UnsupportedError, match="operator Exp has no integer form"):
        lower(between_grids("t = Exp(q)"), Selection())


def with_beta(*beta: float) -> ir.Model:
    model = net()
    model.graph.initializers["beta"].const_value = ir.tensor(np.float32(beta), name="beta")
    return model


def test_a_bias_beyond_int32_gets_a_coarser_scale() -> None:
    plain, extreme = (
        next(op for op in read_program(lower(m, Selection())).ops if isinstance(op, Conv))
        for m in (net(), with_beta(1e9, 1.0))
    )
    assert not extreme.w_OIHW[0].any() and abs(int(extreme.bias[0]) - 2**30) < 2**12
    unit = float(np.float32(extreme.x.scale) * extreme.w_scale[0])
    assert extreme.bias[0] * unit == pytest.approx(1e9, rel=1e-6)
    assert np.array_equal(extreme.w_OIHW[1], plain.w_OIHW[1])
    assert extreme.w_scale[1] == plain.w_scale[1] and extreme.bias[1] == plain.bias[1]


@pytest.mark.parametrize("bias", [0.0, 1.0, 1e9])
def test_weights_that_overflow_the_accumulator_are_refused(bias: float) -> None:
    fits, large = (
        Layer("fc", np.full((1, n), 127, np.int8), np.float32([1.0]), np.array([bias]), 8)
        for n in (2**15, 2**17)
    )
    assert fit_accumulator(fits, np.float32(1.0)) is fits
    with pytest.raises(UnsupportedError, match="layer fc: channel 0 can overflow its int32"):
        fit_accumulator(large, np.float32(1.0))


def test_a_bias_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="layer conv: channel 1 has bias inf"):
        lower(with_beta(0.0, float("inf")), Selection())


@pytest.mark.parametrize(
    "step",
    [
        Canonicalize(), ResolveBits(Selection(default=LayerBits(4, 4))), FreezeWeights(),
        FoldBatchNorm(), QuantizeGlue(), LowerToInteger(),
    ],
    ids=lambda step: type(step).__name__,
)  # fmt: skip
def test_every_pass_changes_nothing_the_second_time(step: ir.passes.PassBase) -> None:
    order = [Canonicalize(), ResolveBits(Selection(default=LayerBits(4, 4))), FreezeWeights(),
             FoldBatchNorm(), QuantizeGlue(), LowerToInteger()]  # fmt: skip
    model = net()
    for other in order:
        other(model)
        if type(other) is type(step):
            break
    assert not step(model).modified


def test_import_is_the_inverse_of_emit() -> None:
    dialect = lower(net(), Selection({"conv": LayerBits(4, 3)}))
    expected = read_program(dialect)
    emitted = emit_onnx_qdq(dialect, {})
    assert not any(node.domain for node in emitted.graph)
    emitted = _reload(emitted)
    ImportQDQ()(emitted)
    got = read_program(emitted)
    assert got.digest() == expected.digest()
    assert got.layer_costs() == expected.layer_costs()
    assert not ImportQDQ()(emitted).modified


def _reload(model: ir.Model) -> ir.Model:
    import onnx

    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def test_import_refuses_floating_point_operators() -> None:
    model = graph(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 4] x) => (float[N, 4] y)
        <float s = {0.5}, uint8 z = {0}> { q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)  t = Exp(d)  r = QuantizeLinear(t, s, z)
        y = DequantizeLinear(r, s, z) }"""
    )
    with pytest.raises(UserError) as error:
        ImportQDQ()(model)
    assert "operator Exp has no integer form" in reason(error)


def test_import_refuses_weights_wider_than_stated() -> None:
    emitted = emit_onnx_qdq(lower(net(), Selection()), {})
    emitted.metadata_props["qtool.bits"] = '{"conv":[3,8]}'
    # The layer is named after its output tensor.
    name = str(next(n for n in emitted.graph if n.op_type == "Conv").outputs[0].name)
    layer = name.removesuffix("/y").removesuffix("/wide")
    emitted.metadata_props["qtool.bits"] = f'{{"{layer}":[3,8]}}'
    with pytest.raises(UserError) as error:
        ImportQDQ()(_reload(emitted))
    assert "weights exceed the 3 bits that the file states" in reason(error)


def test_user_errors_come_out_of_the_pipeline_unwrapped() -> None:
    with pytest.raises(UserError, match="were not trained"):
        lower(net(), Selection({"conv": LayerBits(4, 6)}))


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ("ceil_mode=1, strides=[2, 2]", "MaxPool with ceil_mode 1; 0 is supported"),
        ("dilations=[2, 2]", r"MaxPool with dilations \[2, 2\]; 1 is supported"),
        ('auto_pad="SAME_UPPER"', "MaxPool with auto_pad SAME_UPPER"),
    ],
)
def test_max_pools_beyond_the_dialect_are_refused(pool: str, message: str) -> None:
    nodes = (
        fq("q", "x", "s", "a", "glue", "8") + f"y = MaxPool<kernel_shape=[2, 2], {pool}>(q)"
    )
    model = graph(
        f"{HEADER} g (float[N, 1, 5, 5] x) => (float[N, 1, H, W] y) "
        f"<float[1, 1] s = {{0.5}}> {{ {nodes} }}"
    )
    model.graph.outputs[0].shape = ir.Shape([ir.SymbolicDim("N"), 1, 3, 3])
    with pytest.raises(UnsupportedError, match=message):
        lower(model, Selection())


def test_gemm_with_inputs_first_is_turned() -> None:
    nodes = (
        fq("q", "x", "s", "fc", "activation", "8")
        + fq("w", "k", "s", "fc", "weight", "8", 1)
        + "t = Gemm(q, w)\n"
        + fq("y", "t", "s", "b", "output", "8")
    )
    model = graph(
        f"{HEADER} g (float[N, 2] x) => (float[N, 2] y) "
        f"<float[1, 1] s = {{0.5}}, float[2, 2] k = {{1, 2, 3, 4}}> {{ {nodes} }}"
    )
    for node in model.graph:
        node.outputs[0].shape = ir.Shape([ir.SymbolicDim("N"), 2])
    layer = read_program(lower(model, Selection())).ops[1]
    assert isinstance(layer, Gemm) and layer.w_OI.tolist() == [[2, 6], [4, 8]]


def added(sx: float, sy: float, shape: str = "4") -> ir.Model:
    return between_grids("t = Add(q, q)", sx, sy, shape)


def test_additions_that_onnx_runtime_computes_otherwise_are_refused() -> None:
    assert len(read_program(lower(added(0.5, 1.0), Selection())).ops) == 2
    with pytest.raises(UnsupportedError, match="Add of one-element tensors"):
        lower(added(0.5, 1.0, shape="1"), Selection())
    with pytest.raises(
        UnsupportedError, match=r"tensor b: Add onto a grid 5e\+06 times finer"
    ):
        lower(added(0.5, 1e-7), Selection())


def test_averages_that_onnx_runtime_rejects_are_refused() -> None:
    nodes = fq("q", "x", "sx", "a", "glue", "8") + "t = GlobalAveragePool(q)\n"
    nodes += fq("y", "t", "sy", "b", "output", "8")
    model = graph(
        f"{HEADER} g (float[N, 1, 2, 2] x) => (float[N, 1, 1, 1] y) "
        f"<float[1, 1] sx = {{1.0}}, float[1, 1] sy = {{0.0001}}> {{ {nodes} }}"
    )
    for node in list(model.graph)[1:]:
        node.outputs[0].shape = model.graph.outputs[0].shape
    with pytest.raises(UnsupportedError, match=r"tensor b: average with factor 2.5e\+03"):
        lower(model, Selection())


def test_an_unbounded_clip_leaves_the_window() -> None:
    conv = next(
        op for op in read_program(lower(net(cap="3.4e38"), Selection())).ops
        if isinstance(op, Conv)
    )  # fmt: skip
    assert (conv.lo, conv.hi) == (0, 255)
