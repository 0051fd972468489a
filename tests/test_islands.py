"""Float islands: allowed only on request, marked, counted, and exact all around."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import graph, run_qtool
from test_cli_errors import refused
from torch import nn

from passes.adaptive.canonicalize import Canonicalize
from passes.adaptive.fold_batchnorm import FoldBatchNorm
from passes.adaptive.freeze_weights import FreezeWeights
from passes.adaptive.quantize_glue import QuantizeGlue
from passes.adaptive.resolve_bits import ResolveBits
from passes.emit.facts import describe
from passes.emit.onnx.onnx_file import FORMS, write_onnx
from passes.emit.onnx.onnx_qdq import emit_onnx_qdq
from passes.emit.tvm.cpu.tvm_module import emit_tvm
from passes.emit.tvm.cpu_target import host_target
from passes.importing.import_qdq import ImportQDQ
from passes.lower.lower_to_integer import LowerToInteger
from passes.pipelines import import_qdq, lower
from passes.twins import twins_of
from qtool.core.dialect import ISLANDS_KEY, Grid, Island, Program, read_program
from qtool.core.errors import UnsupportedError, UserError
from qtool.core.selection import LayerBits, Selection, parse_uniform, selection_from_json
from qtool.export.read import read_onnx
from qtool.export.trace import trace
from qtool.nn.control import bit_costs, calibrate, select
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.witness.of_run import quantized
from runtimes.compare import Parity
from runtimes.islands import compare_islands, run_island, run_numpy
from runtimes.ort import OrtRuntime
from runtimes.reference import ReferenceRuntime

SHAPE = (3, 8, 8)
FLOAT = Selection({"3": LayerBits(32, 32)})


def prepared(*middle: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    """Three layers with `middle` between the second and the third; images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), *middle,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    for norm in (net[1], net[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
    images = torch.rand(16, *SHAPE)
    model = prepare(net, QuantSpec((8, 4), weight_bits=4), SHAPE)
    calibrate(model, images)
    return model, images


MIDDLES = {
    "none": nn.Identity(),
    "relu6": nn.ReLU6(),
    "Gelu": nn.GELU(),
    "Softplus": nn.Softplus(),  # the exporter makes seven operators of it
    "GroupNormalization": nn.GroupNorm(2, 8),
    "LayerNormalization": nn.LayerNorm([8, 8, 8]),
    "Resize": nn.Upsample(scale_factor=2, mode="bilinear"),
    "Softmax": nn.Softmax(1),
    "ConvTranspose": nn.ConvTranspose2d(8, 8, 2, stride=2),
}


@cache
def traced(middle: str) -> ir.Model:
    return trace(prepared(MIDDLES[middle])[0], SHAPE)


def adaptive(middle: str = "none") -> ir.Model:
    return traced(middle).clone()


def images() -> np.ndarray:
    return np.random.default_rng(1).random((5, *SHAPE), np.float32)


def island_of(program: Program) -> Island:
    (island,) = program.islands()
    return island


def message(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    return str(error.value)


# Refusals


def test_without_the_flag_layer_operator_and_reason_are_named() -> None:
    refusal = message(lambda: lower(adaptive("Gelu"), Selection()))
    assert "operator Gelu has no integer form; it would run in floating point" in refusal
    assert "--allow-float keeps it as a float island" in refusal


def test_without_the_flag_float_weights_are_refused() -> None:
    assert message(lambda: lower(adaptive(), FLOAT)) == (
        "layer 3: weights of 32 bits would run in floating point (--allow-float keeps the "
        "layer as a float island)"
    )


def test_the_flag_does_not_hide_a_gap_behind_a_quantized_layer() -> None:
    model = adaptive("Gelu")
    # The grid between the convolution and Gelu goes.
    node = next(n for n in model.graph if n.op_type == "Gelu")
    quantizer = node.inputs[0].producer()
    node.replace_input_with(0, quantizer.inputs[0])
    refusal = message(lambda: lower(model, Selection(), allow_float=True))
    assert refusal == "layer 3: the result of Conv has no quantizer behind it"


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (
            "r = Bernoulli(x)",
            "Bernoulli cannot stay in floating point: its results are",
        ),
        ("r = com.example.Magic(x)", "it belongs to the domain com.example"),
    ],
)
def test_what_no_island_can_hold(node: str, reason: str) -> None:
    assert reason in message(lambda: import_qdq(foreign(node), allow_float=True))


def foreign(node: str, opset: int = 21) -> ir.Model:
    """A file of another tool: one float operator between DQ and Q."""
    return graph(
        f"""<ir_version: 10, opset_import: ["" : {opset}, "com.example" : 1]>
        g (float[N, 6] input) => (float[N, 6] output)
        <float s = {{0.125}}, uint8 z = {{128}}, float t = {{0.03125}}, uint8 y = {{3}}>
        {{ q = QuantizeLinear(input, s, z)
           x = DequantizeLinear(q, s, z)
           {node}
           p = QuantizeLinear(r, t, y)
           output = DequantizeLinear(p, t, y) }}"""
    )


def test_old_opsets_are_not_reinterpreted() -> None:
    refusal = message(lambda: import_qdq(foreign("r = Softplus(x)", 17), allow_float=True))
    assert "operator Softplus of opset 17 cannot stay" in refusal
    assert "convert the model to opset 18 or newer" in refusal


def test_foreign_files_need_the_flag() -> None:
    assert "operator Softplus has no integer form" in message(
        lambda: import_qdq(foreign("r = Softplus(x)"))
    )
    program = read_program(import_qdq(foreign("r = Softplus(x)"), allow_float=True))
    island = island_of(program)
    assert island.operators == ("Softplus",) and island.grid == Grid(np.float32(0.03125), 3)
    x = np.linspace(-20, 20, 60, dtype=np.float32).reshape(10, 6)
    codes = np.clip(np.rint(x / 0.125) + 128, 0, 255)
    exact = np.log1p(np.exp((codes - 128) * 0.125))
    expected = np.clip(np.rint(exact / 0.03125) + 3, 0, 255)
    assert np.array_equal(ReferenceRuntime(program).intermediates(x)["p"], expected)


@pytest.mark.parametrize("text", ["[1]", "{}", "[", "null"])
def test_damaged_list_of_islands(text: str) -> None:
    model = foreign("r = Softplus(x)")
    model.metadata_props[ISLANDS_KEY] = text
    assert message(lambda: import_qdq(model)).startswith(
        "the file's qtool.islands metadata is"
    )


def test_a_file_cannot_state_few_bits_for_an_island() -> None:
    model = foreign("r = Softplus(x)")
    model.metadata_props.update({ISLANDS_KEY: '["p"]', "qtool.bits": '{"p": [4, 4]}'})
    assert message(lambda: import_qdq(model)) == (
        "layer p: runs in floating point, but the file states 4 bits"
    )


def test_tvm_refuses_and_says_what_can() -> None:
    program = read_program(lower(adaptive("Gelu"), Selection(), allow_float=True))
    refusal = message(lambda: emit_tvm(program, host_target()))
    assert "Gelu in floating point (--allow-float), which TVM kernels do not have" in refusal
    assert "--target onnx can hold it" in refusal


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("w9a4", "weight bits 9 not supported, expected 1 to 8, or 16 or 32 for float"),
        ("w4a32", "weights of 4 bits with an input of 32: integer layers read up to 8 bits"),
    ],
)
def test_bits_out_of_range(text: str, reason: str) -> None:
    assert reason in message(lambda: parse_uniform(text))


# Numbers


def compare(dialect: ir.Model, form: str, folder: Path) -> tuple[Program, OrtRuntime]:
    """Write, run in ONNX Runtime, compare every integer with the reference."""
    program, path, x = read_program(dialect), folder / f"{form}.onnx", images()
    write_onnx(dialect, path, form)
    expected = ReferenceRuntime(program).intermediates(x)
    ort, parity = OrtRuntime(path, list(expected)), Parity()
    parity.add_all(expected, ort.intermediates(x))
    assert parity.mismatched == 0, parity.first_divergence
    assert parity.compared == sum(codes.size for codes in expected.values()) > 1000
    assert np.array_equal(ort.run(x), ReferenceRuntime(program).run(x))
    for report in compare_islands(program, x, expected):
        assert report["compared"] > 0
        assert report["mismatched"] == 0, report  # onnx.reference agrees that it is float32
    return program, ort


@pytest.mark.parametrize("name", list(MIDDLES)[2:])
def test_operators_outside_the_list(name: str, tmp_path: Path) -> None:
    dialect = lower(adaptive(name), Selection(), allow_float=True)
    program, ort = compare(dialect, "qdq", tmp_path)
    island = island_of(program)
    assert name in island.operators
    assert len(island.operators) == (7 if name == "Softplus" else 1)
    # ONNX Runtime really computes it in floating point, and nothing else.
    floats = ort.float_ops()
    assert floats["QuantizeLinear"] == 1 and floats == ort.island_ops([island.grid])
    again = read_onnx(tmp_path / "qdq.onnx")
    assert again.digest() == program.digest()
    assert describe(again)["islands"] == [
        {"name": island.name, "operators": list(island.operators)}
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [16, 32])
def test_float_layers(bits: int, form: str, tmp_path: Path) -> None:
    selection = Selection({"3": LayerBits(bits, bits)})
    dialect = lower(adaptive(), selection, allow_float=True)
    program, ort = compare(dialect, form, tmp_path)
    island = island_of(program)
    assert island.name == "3" and island.operators == ("Conv", "BatchNormalization")
    # ONNX Runtime would round the weights of a bare DQ -> Conv -> Q to int8 by itself.
    assert ort.float_ops()["Conv"] == 1
    costs = {cost.name: cost for cost in program.layer_costs()}
    assert costs["3"].bits == LayerBits(bits, bits) and costs["3"].macs == 8 * 8 * 8 * 8 * 9
    assert costs["3"].bops == costs["3"].macs * bits * bits
    assert island.weight_bytes == 8 * 8 * 9 * bits // 8
    metadata = onnx.load(tmp_path / f"{form}.onnx").metadata_props
    assert {e.key: e.value for e in metadata}[ISLANDS_KEY] == '["3"]'


def test_all_layers_float_round_trip(tmp_path: Path) -> None:
    everything = Selection(default=LayerBits(32, 32))
    program, _ = compare(lower(adaptive(), everything, allow_float=True), "qdq", tmp_path)
    assert [op.operators[0] for op in program.islands()] == ["Conv", "Conv", "Gemm"]
    assert all(cost.bits == LayerBits(32, 32) for cost in program.layer_costs())
    again = read_onnx(tmp_path / "qdq.onnx")
    assert again.digest() == program.digest() and again.layer_costs() == program.layer_costs()


def test_evaluation_has_the_integers_around_the_float_layer() -> None:
    model, x = prepared()
    dialect = lower(trace(model, SHAPE), FLOAT, allow_float=True)
    program = read_program(dialect)
    codes = ReferenceRuntime(program).intermediates(x.numpy())
    select(model.eval(), FLOAT)
    with torch.no_grad(), quantized(model) as found:
        model(x)
    (island,), order = program.islands(), [op.output for op in program.ops]
    seen = []
    for key, twin in twins_of(dialect).items():
        wanted = np.rint(found[key] / twin.grid.scale) + twin.grid.zero_point
        off = np.abs(codes[twin.tensor] - wanted).max()
        place = order.index(twin.tensor) - order.index(island.output)
        # Torch sums its floats in another order: the island may be a code beside.
        assert place > 0 or off <= int(place == 0), key
        seen.append(place)
    assert min(seen) < 0 and 0 in seen
    costs = {cost.name: cost.bits for cost in bit_costs(model, SHAPE, FLOAT)}
    assert costs["3"] == LayerBits(32, 32) and costs["0"] == LayerBits(8, 8)


def test_float16_weights_beyond_its_range() -> None:
    model = adaptive()
    weight = model.graph.initializers["3.layer.weight"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1e6))
    half = Selection({"3": LayerBits(16, 16)})
    refusal = message(lambda: lower(model, half, allow_float=True))
    assert refusal.startswith("layer 3: weights up to") and "use 32 bits" in refusal


def test_relu_behind_an_island_narrows_its_window(tmp_path: Path) -> None:
    program, _ = compare(lower(adaptive("relu6"), FLOAT, allow_float=True), "qdq", tmp_path)
    island = island_of(program)
    assert island.lo == island.grid.zero_point
    x = [ReferenceRuntime(program).intermediates(images())[name] for name in island.inputs]
    assert run_island(island, x).min() == run_numpy(island, x).min() == island.lo
    assert read_onnx(tmp_path / "qdq.onnx").digest() == program.digest()


def test_island_of_the_float_input_itself() -> None:
    model = graph(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 4] input) => (float[N, 4] output)
        <float s = {0.125}, uint8 z = {128}>
        { e = Exp(input)
          q = QuantizeLinear(e, s, z)
          x = DequantizeLinear(q, s, z)
          r = LeakyRelu<alpha = 0.5>(x)
          p = QuantizeLinear(r, s, z)
          output = DequantizeLinear(p, s, z) }"""
    )
    program = read_program(import_qdq(model, allow_float=True))
    assert island_of(program).x == (None,)
    x = np.linspace(-3, 2, 12, dtype=np.float32).reshape(3, 4)
    expected = np.clip(np.rint(np.exp(x) / 0.125) + 128, 0, 255) * 0.125 - 16
    assert np.array_equal(ReferenceRuntime(program).run(x), expected)


def test_island_unknown_to_numpy_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    program = read_program(import_qdq(foreign("r = Softplus(x)"), allow_float=True))
    monkeypatch.setattr("runtimes.islands.run_numpy", lambda op, inputs: None)
    x = np.zeros((2, 6), np.float32)
    (report,) = compare_islands(program, x, ReferenceRuntime(program).intermediates(x))
    assert report["compared"] == 0


# Passes


@pytest.mark.parametrize("selection", [Selection(), FLOAT])
def test_every_pass_is_idempotent(selection: Selection) -> None:
    model = adaptive("Gelu")
    Canonicalize()(model)
    for step in (
        ResolveBits(selection), FreezeWeights(True), FoldBatchNorm(True), QuantizeGlue(True),
        LowerToInteger(True), ImportQDQ(True),
    ):  # fmt: skip
        first = step(model).modified
        assert first or isinstance(step, ImportQDQ | QuantizeGlue), step
        assert not step(model).modified, step
    assert len(read_program(model).islands()) == (2 if selection is FLOAT else 1)


def test_emission_leaves_the_dialect_alone() -> None:
    dialect = lower(adaptive("Gelu"), FLOAT, allow_float=True)
    before = read_program(dialect).digest()
    emit_onnx_qdq(dialect, {})
    assert read_program(dialect).digest() == before


def test_a_refused_model_is_unchanged() -> None:
    model = adaptive("Gelu")
    for step in (Canonicalize(), ResolveBits(), FreezeWeights(), FoldBatchNorm()):
        step(model)
    before = [(node.op_type, node.outputs[0].name) for node in model.graph]
    with pytest.raises(UnsupportedError, match="operator Gelu has no integer form"):
        LowerToInteger()(model)
    assert [(node.op_type, node.outputs[0].name) for node in model.graph] == before


def test_bits_file_with_float_layers() -> None:
    content = {"format": 1, "layers": {"a": [32, 32], "b": [16, 8]}}
    layers = selection_from_json(content, "x").layers
    assert layers == {"a": LayerBits(32, 32), "b": LayerBits(16, 8)}
    assert all(bits.is_float for bits in layers.values())


# Command line


def test_export_and_check(searched_run: Path, tmp_path: Path) -> None:
    bits = json.loads((searched_run / "bits.json").read_text())
    layer = list(bits["layers"])[1]
    bits["layers"][layer] = [32, 32]
    chosen, model = tmp_path / "bits.json", tmp_path / "model.onnx"
    chosen.write_text(json.dumps(bits))
    export = ("export", searched_run, "--bits", chosen)
    refused(run_qtool(*export, "--target", "onnx", "-o", model), layer, "--allow-float")
    assert not model.exists()
    library = ("--target", "tvm", "-o", tmp_path / "model.so", "--allow-float")
    refused(run_qtool(*export, *library), layer, "--target onnx can hold it")
    done = run_qtool(*export, "--target", "onnx", "-o", model, "--allow-float")
    assert done.code == 0, done.err
    report = tmp_path / "check.json"
    checked = run_qtool(
        "check", model, "--require-parity", "--reference", searched_run, "--json", report
    )
    assert checked.code == 0, checked.err
    assert "1 float island: Conv+BatchNormalization" in checked.out
    assert "float operators outside the islands: none" in checked.out
    found = json.loads(report.read_text())
    assert found["layers"][layer] == [32, 32]
    assert found["parity"]["ort"]["mismatched"] == 0
    coverage = found["integer_coverage"]
    assert coverage["float_ops"] == coverage["island_ops"] != {}
    (island,) = found["islands"]
    assert island["name"] == layer and island["compared"] > 0 and island["max_lsb"] <= 1
    counted = run_qtool("bops", model, "--json")
    assert json.loads(counted.out)["layers"][layer]["bits"] == [32, 32]


def test_import_and_check_of_a_foreign_file(tmp_path: Path) -> None:
    source, output, report = (tmp_path / name for name in ("a.onnx", "b.onnx", "c.json"))
    ir.save(foreign("r = Softplus(x)"), source)
    refused(run_qtool("import", source, "-o", output), "Softplus", "--allow-float")
    done = run_qtool("import", source, "-o", output, "--allow-float")
    assert done.code == 0, done.err
    checked = run_qtool("check", output, "--require-parity", "--json", report)
    assert checked.code == 0, checked.err
    (island,) = json.loads(report.read_text())["islands"]
    assert island["operators"] == ["Softplus"] and island["compared"] > 0
