"""Files of other tools: imported, then compared with ONNX Runtime running the original."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import foreign_files
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny_files
from conftest import run_qtool
from foreign_files import codes, floats, layer
from mutations import MUTATIONS
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from passes.emit.facts import describe
from passes.emit.onnx.onnx_file import FORMS, write_onnx
from passes.importing.fold_constants import FoldConstants
from passes.importing.free_batch import FreeBatch
from passes.importing.quantize_output import QuantizeOutput
from passes.importing.respell_foreign import RespellForeign
from qtool.core.dialect import FloatGemm, Program, read_program
from qtool.core.errors import UnsupportedError, UserError
from qtool.export.foreign_import import parse_range, read_foreign
from qtool.export.read import read_onnx
from runtimes.ort import OrtRuntime, count_float_ops
from runtimes.reference import ReferenceRuntime

Mutation = Callable[[onnx.ModelProto, np.random.Generator], None]


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "foreign.onnx"
    onnx.save(model, path)
    return path


def run_original(path: Path, x: np.ndarray) -> np.ndarray:
    """The file itself in ONNX Runtime, all optimizations on, at its own batch size."""
    session = onnxruntime.InferenceSession(path.read_bytes(), options())
    (source,) = session.get_inputs()[:1]
    parts = np.split(x, len(x)) if source.shape[0] == 1 else [x]
    return np.concatenate([session.run(None, {source.name: part})[0] for part in parts])


def options() -> onnxruntime.SessionOptions:
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    chosen.log_severity_level = 4
    return chosen


def float_ops(path: Path, folder: Path) -> Counter[str]:
    """Operators that ONNX Runtime computes in float when it runs the original."""
    chosen = options()
    chosen.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(path.read_bytes(), chosen)
    found = count_float_ops(onnx.load(chosen.optimized_model_filepath))
    for name in ("QuantizeLinear", "DequantizeLinear"):
        found.pop(name, None)
    return found


def inputs(program: Program, count: int = 8) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, *program.input_shape)).astype(np.float32)


def lsb(program: Program, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Differences of outputs in integers, or in floats where the output has no grid."""
    if program.float_output:
        return np.abs(a - b)
    return np.rint(np.abs(a - b) / program.output_grid.scale)


def assert_exact_when_written(dialect: ir.Model, folder: Path) -> None:
    """Both forms: every integer tensor and output in ONNX Runtime is the reference's."""
    program = read_program(dialect)
    x = inputs(program, 4)
    for form in FORMS:
        path = folder / f"{form}.onnx"
        write_onnx(dialect, path, form)
        read = read_onnx(path)
        reference, ort = ReferenceRuntime(read), OrtRuntime(path, read.tensors())
        np.testing.assert_array_equal(ReferenceRuntime(program).run(x), reference.run(x))
        np.testing.assert_array_equal(ort.run(x), reference.run(x))
        got = ort.intermediates(x)
        for name, expected in reference.intermediates(x).items():
            np.testing.assert_array_equal(got[name], expected, err_msg=name)
        assert not ort.float_ops()
        assert read.layer_costs() == program.layer_costs()


# ONNX Runtime's quantize_static

NETS = {
    "resnet20": (3, 16, 16),
    "mobilenet_v2_small": (1, 28, 28),
    "mobilenet_v3_small": (3, 32, 32),
    "preact_resnet20_narrow": (3, 16, 16),
    "resnet18": (3, 32, 32),
}
# variant: (format, per channel, int8 activations, further arguments)
VARIANTS = {
    "qdq": ("QDQ", True, False, {}),
    "qop": ("QOperator", True, False, {}),
    "qdq s8 per tensor": ("QDQ", False, True, {}),
    "qop s8 per tensor": ("QOperator", False, True, {}),
    "qdq s8 symmetric": ("QDQ", True, True, {"extra_options": {"ActivationSymmetric": True}}),
    "qdq reduced range": ("QDQ", False, False, {"reduce_range": True}),
}
# (net, variant): largest difference in the logits; 0 where ONNX Runtime computes integers. It
# runs HardSwish, BatchNormalization and a part of the s8 convolutions and sums in float.
CASES = {
    ("resnet20", "qdq"): 0,
    ("resnet20", "qop"): 0,
    ("resnet20", "qdq reduced range"): 0,
    ("resnet20", "qdq s8 symmetric"): 1,
    ("mobilenet_v2_small", "qdq"): 0,
    ("mobilenet_v2_small", "qop"): 0,
    ("mobilenet_v2_small", "qdq s8 per tensor"): 1,
    ("mobilenet_v2_small", "qop s8 per tensor"): 0,
    ("mobilenet_v3_small", "qdq"): 2,
    ("mobilenet_v3_small", "qop"): 2,
    ("preact_resnet20_narrow", "qdq"): 2,
    ("preact_resnet20_narrow", "qop"): 2,
    ("resnet18", "qdq"): 0,
    ("resnet18", "qop"): 0,
    ("resnet18", "qdq s8 per tensor"): 1,
}
# What is float in ONNX Runtime and rounds as the integer operator does, on these inputs.
HARMLESS = {"ReduceMean", "Reshape", "MaxPool", "Slice", "Pad", "Transpose"}


class Calibration:
    """Random images, as quantize_static reads them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self.batches = [rng.normal(size=(4, *shape)).astype(np.float32) for _ in range(2)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"input": self.batches.pop()} if self.batches else None


@pytest.fixture(scope="module")
def float_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A zoo network in float, random weights and BatchNorm statistics."""
    import torch
    from torch import nn

    from qtool.export.trace import trace_float
    from qtool.models import model_factory

    name: str = request.param
    torch.manual_seed(0)
    model = model_factory(name)()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    path = tmp_path_factory.mktemp(name) / "float.onnx"
    onnx.save(ir.to_proto(trace_float(model, NETS[name])), path)
    return path


def quantize_static(source: Path, target: Path, variant: str, shape: tuple[int, ...]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    form, per_channel, is_signed, more = VARIANTS[variant]
    activation = QuantType.QInt8 if is_signed else QuantType.QUInt8
    quantize_static(
        source, target, Calibration(shape), quant_format=QuantFormat[form],
        per_channel=per_channel, activation_type=activation, weight_type=QuantType.QInt8,
        **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "float_file",
    [n if "small" in n else pytest.param(n, marks=pytest.mark.nightly) for n in NETS],
    indirect=True,
)
def test_quantize_static(float_file: Path, tmp_path: Path) -> None:
    net = next(name for name in NETS if float_file.parent.name.startswith(name))
    for (name, variant), bound in CASES.items():
        if name != net:
            continue
        folder = tmp_path / variant
        folder.mkdir()
        path = folder / "foreign.onnx"
        quantize_static(float_file, path, variant, NETS[net])
        dialect, notes = read_foreign(path)
        program = read_program(dialect)
        x = inputs(program)
        wrong = lsb(program, ReferenceRuntime(program).run(x), run_original(path, x))
        assert wrong.max() <= bound, f"{variant}: {int((wrong > 0).sum())} of {wrong.size}"
        # Where numbers may differ it is because ONNX Runtime left integers.
        assert (bound == 0) == (not set(float_ops(path, folder)) - HARMLESS), variant
        assert bool(notes) <= (bound > 0), notes
        assert_exact_when_written(dialect, folder)


# NNCF, Brevitas, AIMET

TOOLS = {
    "nncf": foreign_files.nncf,
    "brevitas 8": lambda: foreign_files.brevitas(8),
    "brevitas 4": lambda: foreign_files.brevitas(4),
    "aimet": foreign_files.aimet,
}


@pytest.mark.parametrize("tool", TOOLS)
def test_other_tools(tool: str, tmp_path: Path) -> None:
    path = save(TOOLS[tool](), tmp_path)
    dialect, notes = read_foreign(path)
    program = read_program(dialect)
    assert not notes
    assert program.float_output == (tool != "aimet")
    x = inputs(program, 32)
    wrong = lsb(program, ReferenceRuntime(program).run(x), run_original(path, x))
    if "brevitas" in tool:
        assert_codes_of_batchnorm(path, program, x)
    elif program.float_output:
        # ONNX Runtime runs this Gemm in float: rounding of the bias and of sums is left.
        assert float_ops(path, tmp_path)["Gemm"] == 1
        last = next(op for op in program.ops if isinstance(op, FloatGemm))
        unit = (last.x.scale * last.w_scale).max()
        assert wrong.max() <= unit / 2 + 1e-5, (wrong > unit / 2 + 1e-5).sum()
    else:
        assert wrong.max() == 0
    assert_exact_when_written(dialect, tmp_path)


def assert_codes_of_batchnorm(path: Path, program: Program, x: np.ndarray) -> None:
    """The layer that BatchNorm follows, which ONNX Runtime leaves in float.

    Its shift is a bias of whole multiples of xs * ws here: half of one is up to 0.5 % of a
    code, so that some in a thousand codes round to their neighbour.
    """
    model = onnx.load(path)
    names = ["xq", "rq"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    got = onnxruntime.InferenceSession(model.SerializeToString(), options()).run(
        names, {"input": x}
    )
    reference = ReferenceRuntime(program).intermediates(x)
    assert np.array_equal(reference["xq"], got[0].astype(np.int16) + 128)
    wrong = np.abs(got[1].astype(int) - reference["c"])
    assert wrong.max() <= 1 and (wrong > 0).mean() < 0.01


@pytest.mark.nightly
def test_a_float_output_is_exact_in_tvm(tmp_path: Path) -> None:
    path = save(foreign_files.nncf(), tmp_path)
    out, library, report = (tmp_path / name for name in ("out.onnx", "out.so", "check.json"))
    for target in (out, library):
        done = run_qtool("import", path, "-o", target)
        assert done.code == 0, done.err
    checked = run_qtool("check", out, library, "--require-parity", "--json", report)
    assert checked.code == 0, checked.err
    assert "parity ort" in checked.out and "parity tvm" in checked.out
    assert "data set none: random inputs from -3.75 to 3.9" in checked.out
    assert "accuracy" not in checked.out


def test_four_bits_are_stored_in_four(tmp_path: Path) -> None:
    path = save(foreign_files.brevitas(4), tmp_path)
    dialect, _ = read_foreign(path)
    bits = [
        (cost.bits.weight, cost.bits.activation)
        for cost in read_program(dialect).layer_costs()
    ]
    assert bits == [(4, 8), (4, 4), (4, 4)]
    write_onnx(dialect, tmp_path / "out.onnx")
    kinds = {init.data_type for init in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert TensorProto.INT4 in kinds


# Details

CONV = "c = Conv <kernel_shape = [3, 3]> (x, wf)\n q = QuantizeLinear (c, t, z)\n"
CONV += "y = DequantizeLinear (q, t, z)"
WEIGHT = "wf = DequantizeLinear <axis = 0> (w, ws)\n"
W = codes(0, 3, 2, 3, 3)
FC = "f = Flatten (x)\n c = MatMul (f, vf)\n"
V = codes(0, 32, 3)


def imported(
    model: onnx.ModelProto, folder: Path, **more: object
) -> tuple[Program, list[str]]:
    dialect, notes = read_foreign(save(model, folder), **more)  # type: ignore[arg-type]
    return read_program(dialect), notes


def test_final_softmax_is_left_out_and_said(tmp_path: Path) -> None:
    tail = "vf = DequantizeLinear <axis = 1> (v, ws)\n" + FC + "y = Softmax <axis = -1> (c)"
    program, notes = imported(layer(tail, out="3", v=V), tmp_path)
    assert program.float_output and program.output_name == "y"
    assert notes == ["the final Softmax is left out: the output is its input, the logits"]


def test_matmul_and_add_are_one_layer(tmp_path: Path) -> None:
    tail = "vf = DequantizeLinear <axis = 1> (v, ws)\n" + FC + "y = Add (c, b)"
    program, _ = imported(layer(tail, out="3", v=V, b=floats(1, 3)), tmp_path)
    (last,) = [op for op in program.ops if isinstance(op, FloatGemm)]
    x = inputs(program)
    unit = (last.x.scale * last.w_scale).max()
    # Against ONNX's own evaluator: ONNX Runtime makes this MatMul a MatMulNBits, which rounds
    # its activations once more and is off by up to 0.07.
    path = tmp_path / "foreign.onnx"
    assert float_ops(path, tmp_path)["MatMulNBits"] == 1
    exact = ReferenceEvaluator(onnx.load(path)).run(None, {"input": x})[0]
    assert np.abs(ReferenceRuntime(program).run(x) - exact).max() <= unit / 2 + 1e-5
    assert np.any(last.bias)


def test_a_bias_on_another_scale_is_rounded_again(tmp_path: Path) -> None:
    tail = (
        WEIGHT + "bf = DequantizeLinear <axis = 0> (b, bs)\n" + CONV.replace("wf)", "wf, bf)")
    )
    bias, unit = np.array([100, -50, 7], np.int32), np.full(3, 0.01, np.float32)
    model = layer(tail, out="3, 2, 2", w=W, b=bias, bs=unit)
    program, notes = imported(model, tmp_path)
    conv = program.layers()[0][0]
    expected = np.rint(bias * np.float64(0.01) / (conv.x.scale * conv.w_scale).astype(float))
    assert np.abs(conv.bias - expected).max() <= 1
    assert "scale of its int32 bias is not input scale * weight scale" in notes[0]


def test_no_tensor_is_called_like_the_output(tmp_path: Path) -> None:
    # A node without a name is called after its result.
    model = layer(WEIGHT + "y = Conv <kernel_shape = [3, 3]> (x, wf)", out="3, 2, 2", w=W)
    program, _ = imported(model, tmp_path, output_range=(-10.0, 15.5))
    assert program.output_name == "y"
    assert "y" not in {op.output for op in program.ops}


def test_an_output_range_gives_a_float_output_a_grid(tmp_path: Path) -> None:
    tail = WEIGHT + "y = Conv <kernel_shape = [3, 3]> (x, wf)"
    model = layer(tail, out="3, 2, 2", w=W)
    with pytest.raises(
        UnsupportedError, match=r"output y is the float result of Conv; .*LO,HI"
    ):
        imported(model, tmp_path)
    program, _ = imported(model, tmp_path, output_range=(-10.0, 15.5))
    assert program.output_grid.scale == np.float32(0.1)
    assert program.output_grid.zero_point == 100


def test_ort_domain_missing_zero_points_and_axes_attributes(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 13, "com.microsoft" : 1]>
    g (float[2, 2, 4, 4] input) => (float[2, 2] y)
    <float s = {0.05}, int8 i = {0}>
    {
        q = com.microsoft.QuantizeLinear (input, s, i)
        x = com.microsoft.DequantizeLinear (q, s)
        n = Neg (x)
        m = ReduceMean <axes = [2, 3], keepdims = 0> (x)
        mq = QuantizeLinear (m, s)
        y = DequantizeLinear (mq, s)
    }"""
    program, _ = imported(foreign_files.parse(text), tmp_path)
    assert [type(op).__name__ for op in program.ops] == ["Quantize", "Average", "Reshape"]
    assert [op.grid.zero_point for op in program.ops] == [128, 0, 0]
    x = np.random.default_rng(0).normal(size=(2, 2, 4, 4)).astype(np.float32)
    got = ReferenceRuntime(program).run(x)
    scale = np.float32(0.05)
    on_grid = np.clip(np.rint(x / scale), -128, 127) * scale
    exact = np.clip(np.rint(on_grid.mean((2, 3)) / scale), 0, 255) * scale
    assert np.abs(got - exact).max() <= 1.01 * scale  # a tie may round the other way
    assert (np.abs(got - exact) > 0.01).mean() < 0.5


def test_hard_swish_of_a_float_layer_gets_a_grid_and_a_note(tmp_path: Path) -> None:
    tail = WEIGHT + CONV.replace("(c, t, z)", "(h, t, z)").replace(
        "\n q =",
        "\n g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (c)\n h = Mul (c, g)\n q =",
    )
    program, notes = imported(layer(tail, out="3, 2, 2", w=W), tmp_path)
    assert [type(op).__name__ for op in program.ops] == ["Quantize", "Conv", "Lookup"]
    assert len(notes) == 1 and notes[0].startswith("tensor c is float in the file; it gets")
    x = inputs(program, 64)
    wrong = ReferenceRuntime(program).run(x) - run_original(tmp_path / "foreign.onnx", x)
    # One more rounding, of a step below 1.6 of the result's, slope at most 1.5 there.
    assert np.abs(wrong).max() <= 0.1 * 2


def test_passes_are_idempotent(tmp_path: Path) -> None:
    tail = "vf = DequantizeLinear <axis = 1> (v, ws)\n" + FC + "y = Add (c, b)"
    path = save(layer(tail, out="3", v=V, b=floats(1, 3)), tmp_path)
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model = ir.from_proto(proto)
    fired = [True, True, True, False]
    for step in (RespellForeign([]), QuantizeOutput(-1, 1), FreeBatch(), FoldConstants()):
        assert step(model).modified == fired.pop(0)
        assert not step(model).modified
    brevitas = ir.from_proto(foreign_files.aimet())
    assert FoldConstants()(brevitas).modified and not FoldConstants()(brevitas).modified


REFUSED = {
    "uint8 weights": (
        "wf = DequantizeLinear <axis = 0> (w, s, u3)\n" + CONV, {"w": W.astype(np.uint8)},
        "uint8 weights with zero point 3; 128 is supported",
    ),
    "shifted weights": (
        "wf = DequantizeLinear <axis = 0> (w, s, one)\n" + CONV,
        {"w": W, "one": np.asarray(np.int8(1))}, "weights with zero point 1; 0 is supported",
    ),
    "float weights": (
        "wf = Identity (w)\n" + CONV, {"w": floats(0, 3, 2, 3, 3)}, "Conv has float weights",
    ),
    "float input": (
        WEIGHT + CONV.replace("(x,", "(input,"), {"w": W}, "Conv reads input, which is float",
    ),
    "transposed convolution": (
        "wf = DequantizeLinear <axis = 0> (w, s, i)\n"
        + CONV.replace("Conv <", "ConvTranspose <"), {"w": codes(0, 2, 3, 3, 3)},
        "operator ConvTranspose has no integer form",
    ),
    "16-bit activations": (
        "q = QuantizeLinear (x, s, wide)\n y = DequantizeLinear (q, s, wide)",
        {"wide": np.asarray(np.uint16(0))}, "uint16; uint8 and int8 are supported",
    ),
    "unknown operator": (
        "y = com.microsoft.QLinearSoftmax (x, s, z, s, z)", {},
        "this com.microsoft operator is not in the integer dialect",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_layer_and_reason(case: str, tmp_path: Path) -> None:
    tail, arrays, reason = REFUSED[case]
    path = save(layer(tail, out="A, B, C", **arrays), tmp_path)
    done = run_qtool("import", path, "-o", tmp_path / "out.onnx")
    assert done.code == 2 and reason in done.err, done.err
    assert done.err.count("\n") == 1 and str(path) in done.err
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda f: f.__name__)
def test_damaged_files_are_refused_in_one_line(mutate: Mutation, tmp_path: Path) -> None:
    for seed, make in enumerate((foreign_files.nncf, foreign_files.aimet, tiny_files.qop)):
        model = make()
        mutate(model, np.random.default_rng(seed))
        path = tmp_path / f"{seed}.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            read_foreign(path)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_two_outputs_are_refused(tmp_path: Path) -> None:
    model = foreign_files.aimet()
    model.graph.output.append(onnx.ValueInfoProto(name="k"))
    model.graph.output[1].type.CopyFrom(model.graph.output[0].type)
    for dimension in model.graph.output[1].type.tensor_type.shape.dim:
        dimension.dim_param = f"d{dimension.dim_value}"
    with pytest.raises(UserError, match="1 inputs and 2 outputs; one of each is supported"):
        read_foreign(save(model, tmp_path))


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    path, out = save(foreign_files.aimet(), tmp_path), tmp_path / "out.onnx"
    out.write_text("precious")
    done = run_qtool("import", path, "-o", out)
    assert done.code == 2 and "--force" in done.err and out.read_text() == "precious"
    assert run_qtool("import", path, "-o", out, "--force", "--format", "qop").code == 0
    assert any(node.op_type == "QLinearConv" for node in onnx.load(out).graph.node)


@pytest.mark.parametrize("text", ["1", "a,b", "1,2", "-2,-1", "0,0", "nan,1"])
def test_ranges_that_hold_no_zero_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="range"):
        parse_range(text)


def test_accuracy_when_a_data_set_is_named(tmp_path: Path) -> None:
    model = foreign_files.aimet()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    weight = next(init for init in model.graph.initializer if init.name == "w")
    array = onnx.numpy_helper.to_array(weight)[:, :1]
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 28
    path, out = save(model, tmp_path), tmp_path / "out.onnx"
    assert run_qtool("import", path, "-o", out).code == 0
    check = ("check", out, "--runtime", "reference")
    assert "accuracy reference" in run_qtool(*check, "--dataset", "fashion_mnist_12k").out
    refused = run_qtool(*check, "--dataset", "nothing")
    assert refused.code == 2 and "data set" in refused.err


@pytest.mark.parametrize("opset", [13, 17, 21, 23, 25])
def test_opsets(opset: int, tmp_path: Path) -> None:
    model = foreign_files.layer(WEIGHT + CONV, out="3, 2, 2", w=W)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    program, _ = imported(model, tmp_path)
    x = inputs(program)
    assert len(program.ops) == 2 and ReferenceRuntime(program).run(x).std() > 0


def test_a_file_of_qtool_keeps_layers_and_bits(exported: Path, tmp_path: Path) -> None:
    own, again = exported / "model.onnx", tmp_path / "again.onnx"
    done = run_qtool("import", own, "-o", again)
    assert done.code == 0, done.err
    facts, twin = (describe(read_onnx(path)) for path in (own, again))
    assert facts["layers"] and facts["layers"] == twin["layers"]
    assert facts["digest"] == twin["digest"]
