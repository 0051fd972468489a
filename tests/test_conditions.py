"""What passes require and ensure, on graphs that break it, and graphs that are no graphs."""

import importlib
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import graph
from onnx_ir.passes import InPlacePass, InvariantError, PostconditionError, PreconditionError
from test_passes import HEADER, first, fq, net
from tiny_files import qdq, qop

import passes
from passes import pipelines
from passes.adaptive.canonicalize import Canonicalize
from passes.adaptive.fold_batchnorm import FoldBatchNorm
from passes.adaptive.freeze_weights import FreezeWeights
from passes.adaptive.quantize_glue import QuantizeGlue
from passes.adaptive.resolve_bits import ResolveBits
from passes.importing.expand_qlinear import ExpandQLinear
from passes.importing.fold_constants import FoldConstants
from passes.importing.free_batch import FreeBatch
from passes.importing.import_qdq import ImportQDQ
from passes.importing.own_weights import OwnWeights
from passes.importing.quantize_output import QuantizeOutput
from passes.importing.respell_foreign import RespellForeign
from passes.lower.lower_to_integer import LowerToInteger
from passes.pipelines import DEBUG, lower
from passes.raw_pixels import UseRawPixels
from passes.well_formed import CheckWellFormed, faults
from qtool.core.dialect import MS
from qtool.core.errors import UserError
from qtool.core.selection import Selection

LOWERING = (Canonicalize, ResolveBits, FreezeWeights, FoldBatchNorm, QuantizeGlue)


def lowered_up_to(kind: type[InPlacePass] | None) -> ir.Model:
    """`test_passes.net` behind the passes before `kind`; None for behind all of them."""
    model = net()
    for step in LOWERING:
        if step is kind:
            break
        step()(model)
    return model


def adaptive(nodes: str, shape: str = "1, 2, 2") -> ir.Model:
    """A graph from x, quantized, to y, with `nodes` between q and t."""
    body = fq("q", "x", "s", "a", "glue", "8") + nodes + fq("y", "t", "s", "b", "output", "8")
    model = graph(
        f"{HEADER} g (float[N, {shape}] x) => (float[N, {shape}] y) "
        f"<float[1, 1] s = {{0.5}}, float[1] one = {{1}}, float[1, 1, 1, 1] k = {{1}}> "
        f"{{ {body} }}"
    )
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
        node.outputs[0].shape = model.graph.inputs[0].shape
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return model


def standard(nodes: str, inputs: str = "float[N, 4] x", outputs: str = "float[N, 4] y"):
    """A graph of the standard's operators, each called after its result."""
    model = graph(
        f'<ir_version: 10, opset_import: ["" : 21, "{MS}" : 1]> g ({inputs}) => ({outputs}) '
        f"<float s = {{0.5}}, uint8 z = {{0}}, float[4, 4] k = {{1, 2, 3, 4, 5, 6, 7, 8, 9, "
        f"1, 2, 3, 4, 5, 6, 7}}, int8[4, 4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, "
        f"6, 7}}, int8 wz = {{0}}, uint8 u = {{9}}> {{ {nodes} }}"
    )
    for node in model.graph:
        node.name = str(node.outputs[0].name)
    return model


def shared_weight() -> ir.Model:
    return standard("d = DequantizeLinear(w, s, wz)  a = MatMul(x, d)  y = MatMul(a, d)")


# Requires


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (FoldBatchNorm(), "FoldBatchNorm cannot run: FakeQuant conv still quantizes a weight"),
        (QuantizeGlue(), "QuantizeGlue cannot run: FakeQuant conv still quantizes a weight"),
        (LowerToInteger(), "LowerToInteger cannot run: FakeQuant conv still quantizes"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_that_are_no_codes_yet(step: InPlacePass, message: str) -> None:
    model = net()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(PreconditionError, match=message):
        step(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_weights_and_activations_of_several_widths() -> None:
    model = net()
    FreezeWeights()(model)
    with pytest.raises(
        PreconditionError,
        match="LowerToInteger cannot run: FakeQuant conv has 3 bit-widths, 3 steps and 1",
    ):
        LowerToInteger()(model)
    model = net()
    weight = next(n for n in model.graph if n.attributes.get_string("role", "") == "weight")
    weight.attributes["bits"] = ir.AttrInt64s("bits", [8, 4])
    with pytest.raises(
        PreconditionError, match="FreezeWeights cannot run: FakeQuant conv has 2 bit-widths"
    ):
        FreezeWeights()(model)


# Ensures: what a pass would have left, made by hand


def resolved_but_one() -> ir.Model:
    model = net()
    ResolveBits()(model)
    node = first(model, "FakeQuant")
    node.attributes["zero_points"] = ir.AttrInt64s("zero_points", [3, 4])
    return model


def resolved_but_rows() -> ir.Model:
    model = net()
    ResolveBits()(model)
    first(model, "FakeQuant").op_type = "Norm"
    return model


def codes_without_bits() -> ir.Model:
    model = lowered_up_to(FoldBatchNorm)
    first(model, "DequantizeLinear").metadata_props.pop("qtool.weight_bits")
    return model


def wide_codes() -> ir.Model:
    model = lowered_up_to(FoldBatchNorm)
    codes = first(model, "DequantizeLinear").inputs[0]
    assert codes is not None and codes.const_value is not None
    codes.const_value = ir.tensor(codes.const_value.numpy().astype(np.int32), name=codes.name)
    return model


def dialect_with(op_type: str) -> ir.Model:
    model = lowered_up_to(None)
    LowerToInteger()(model)
    node = first(model, "QLinearConv")
    node.op_type, node.name = op_type, "who"
    return model


def dialect_without_shape() -> ir.Model:
    model = dialect_with("QLinearConv")
    first(model, "QLinearConv").outputs[0].shape = None
    return model


def normalised() -> ir.Model:
    model = lowered_up_to(FoldBatchNorm)
    first(model, "BatchNormalization").name = "bn"
    return model


def raw_and_quantized() -> ir.Model:
    model = standard(
        "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)", "float[N, 4] x"
    )
    model.graph.inputs[0].type = ir.TensorType(ir.DataType.UINT8)
    return model


QLINEAR = f"y = {MS}.QLinearAdd(x, s, z, x, s, z, s, z)"
CODES = ("uint8[N, 4] x", "uint8[N, 4] y")
BROKEN: dict[str, tuple[InPlacePass, Callable[[], ir.Model], str]] = {
    "two zero points": (
        ResolveBits(), resolved_but_one, "FakeQuant conv has 1 bit-widths, 1 steps and 2 zero",
    ),
    "rows to choose from": (
        ResolveBits(), resolved_but_rows, "Norm conv still has all its rows",
    ),
    "a weight in floats": (FreezeWeights(), net, "FakeQuant conv still quantizes a weight"),
    "codes without bits": (
        FreezeWeights(), codes_without_bits, "layer conv: weight is int8, bits missing",
    ),
    "codes of 32 bits": (FreezeWeights(), wide_codes, "layer conv: weight is int32"),
    "a BatchNorm": (FoldBatchNorm(), normalised, "node bn: a BatchNorm is left"),
    "no grid before": (
        QuantizeGlue(), lambda: adaptive("t = Add(q, x)\n"),
        "layer n1: Add reads x in floating point",
    ),
    "no grid behind": (
        QuantizeGlue(), lambda: adaptive("r = Add(q, q)\nt = Exp(r)\n"),
        "layer n1: the result of Add has no quantizer behind it",
    ),
    "a grid behind data movement": (
        QuantizeGlue(), lambda: adaptive("t = Transpose<perm = [0, 1, 3, 2]>(q)\n"),
        "FakeQuant n2 stands behind Transpose n1",
    ),
    "a float operator": (
        LowerToInteger(), lambda: dialect_with("Conv"),
        r"node who \(Conv\) is not of the integer dialect",
    ),
    "no shape": (
        LowerToInteger(), dialect_without_shape, r"\(QLinearConv\): .* has no shape or type",
    ),
    "a QLinear operator": (
        ExpandQLinear(), lambda: standard(QLINEAR, *CODES), r"node y \(QLinearAdd\) is left",
    ),
    "a fixed batch": (
        FreeBatch(), lambda: standard("y = Relu(x)", "float[2, 4] x"),
        r"input x has the shape \[2,4\]",
    ),
    "a float output": (
        QuantizeOutput(0, 1), lambda: standard("y = Relu(x)"), "output is made by Relu y",
    ),
    "a DequantizeLinear": (
        ImportQDQ(),
        lambda: standard("q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)\n"
                         "y = Relu(d)"),
        r"node d \(DequantizeLinear\) is left",
    ),
    "a shared weight": (OwnWeights(), shared_weight, "node y shares its weight with others"),
    "a weight without a name": (
        RespellForeign(),
        lambda: standard("d = DequantizeLinear(w, s, wz)  y = MatMul(x, d)"),
        r"node y \(MatMul\): its weight has no name",
    ),
    "float pixels": (UseRawPixels(), lambda: standard("y = Relu(x)"), "input x is FLOAT"),
    "codes quantized again": (
        UseRawPixels(), raw_and_quantized, "node q quantizes the codes again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_promise_names_pass_and_node(case: str) -> None:
    step, make, words = BROKEN[case]
    with pytest.raises(
        PostconditionError, match=f"{type(step).__name__} broke its promise: .*{words}"
    ):
        step.ensures(make())


def test_a_broken_condition_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FreezeWeights, "call", lambda self, m: ir.passes.PassResult(m, False))
    with pytest.raises(
        PostconditionError, match=r"^FreezeWeights broke its promise: FakeQuant conv"
    ) as error:
        lower(net(), Selection())
    assert not isinstance(error.value, UserError)


# Between passes


def renamed(index: int, name: str) -> Callable[[ir.Model], None]:
    def damage(model: ir.Model) -> None:
        model.graph[index].outputs[0].name = name

    return damage


def reversed_order(model: ir.Model) -> None:
    last = model.graph[-1]
    model.graph.remove(last)
    model.graph.insert_before(model.graph[0], last)


def reads_what_is_not_there(model: ir.Model) -> None:
    model.graph[1].replace_input_with(0, ir.Value(name="ghost"))


def drops_what_is_read(model: ir.Model) -> None:
    model.graph.initializers.pop("s")


def empties(model: ir.Model) -> None:
    model.graph.initializers["s"].const_value = None


def unknown_operator(model: ir.Model) -> None:
    model.graph[1].op_type = "Reluu"


def unknown_domain(model: ir.Model) -> None:
    model.opset_imports.pop("qtool")


def input_too_many(model: ir.Model) -> None:
    model.graph[1].resize_inputs(2)


def no_dimensions(model: ir.Model) -> None:
    model.graph[0].outputs[0].shape = None


def other_dimensions(model: ir.Model) -> None:
    model.graph[-1].outputs[0].shape = ir.Shape(["N", 7])


def other_type(model: ir.Model) -> None:
    model.graph[0].outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)


def strange_output(model: ir.Model) -> None:
    model.graph.outputs[:] = [ir.Value(name="ghost")]


FAULTS: dict[str, tuple[Callable[[ir.Model], None], str]] = {
    "twice the name": (renamed(1, "q"), "node n1 (Relu): two tensors are called q"),
    "an input's name": (renamed(1, "x"), "node n1 (Relu): two tensors are called x"),
    "no name": (renamed(1, None), "node n1 (Relu) makes a tensor without a name"),  # type: ignore[arg-type]
    "too early": (reversed_order, "node n2 (FakeQuant) reads t, which nothing before it"),
    "from elsewhere": (reads_what_is_not_there, "node n1 (Relu) reads ghost, which nothing"),
    "dropped": (drops_what_is_read, "node n0 (FakeQuant) reads s, which nothing before it"),
    "no data": (empties, "initializer s is called s, or has no data"),
    "operator": (unknown_operator, "node n1 (Reluu): no such operator"),
    "domain": (unknown_domain, "node n0 (FakeQuant): domain qtool is not imported"),
    "inputs": (input_too_many, "node n1 (Relu): 2 inputs"),
    "no shape": (no_dimensions, "FakeQuant a makes FLOAT of shape None"),
    "another shape": (other_dimensions, "FakeQuant b makes [N,7] of [N,1,2,2]"),
    "another type": (other_type, "FakeQuant a makes DOUBLE of shape [N,1,2,2]"),
    "output": (strange_output, "output ghost: nothing makes it"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_graph_that_is_none_is_found(case: str) -> None:
    damage, words = FAULTS[case]
    model = adaptive("t = Relu(q)\n")
    assert list(faults(model)) == []
    damage(model)
    with pytest.raises(InvariantError) as error:
        CheckWellFormed("ResolveBits")(model)
    assert str(error.value.__cause__ or error.value).startswith("after ResolveBits: ")
    assert any(words in fault for fault in faults(model)), list(faults(model))


def test_graphs_are_checked_between_passes_where_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoil(self: FoldBatchNorm, model: ir.Model) -> ir.passes.PassResult:
        first(model, "Conv").op_type = "Convv"
        return ir.passes.PassResult(model, True)

    assert os.environ[DEBUG] == "1" and pipelines.is_debugging()
    monkeypatch.setattr(ResolveBits, "call", spoil)
    monkeypatch.setattr(ResolveBits, "ensures", lambda self, model: None)
    with pytest.raises(InvariantError, match=r"^after ResolveBits: node .*Convv.: no such"):
        lower(net(), Selection())
    monkeypatch.setenv(DEBUG, "0")
    assert not pipelines.is_debugging()
    with pytest.raises((UserError, InvariantError)) as error:
        lower(net(), Selection())
    assert "after ResolveBits" not in str(error.value)


def test_the_result_is_validated_as_a_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(pipelines, "check_program", lambda program: seen.append(program))
    lower(net(), Selection())
    assert [len(program.ops) for program in seen] == [2]
    monkeypatch.undo()
    model = net()
    model.graph.initializers["sy"].const_value = ir.tensor(np.float32([[2.0]]), name="sy")

    def mislead(self: LowerToInteger, m: ir.Model) -> ir.passes.PassResult:
        result = call(self, m)
        first(m, "QLinearConv").attributes["strides"] = ir.AttrInt64s("strides", [2, 2])
        return result

    call = LowerToInteger.call
    monkeypatch.setattr(LowerToInteger, "call", mislead)
    with pytest.raises(UserError, match=r"node conv: result of shape \(2, 5, 5\) from"):
        lower(model, Selection())


# Every pass twice


def file_of(proto: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def dialect_of_pixels() -> ir.Model:
    model = standard("q = QuantizeLinear(x, p, z)  y = DequantizeLinear(q, p, z)")
    scale = ir.tensor(np.float32(1) / np.float32(255), name="p")
    value = ir.Value(name="p", const_value=scale, type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.register_initializer(value)
    for node in model.graph:
        node.replace_input_with(1, value)
    return model


def pooled() -> ir.Model:
    return standard(
        "a = Constant<value_ints = [2, 3]>()  y = ReduceMean(x, a)",
        "float[N, 4, 2, 2] x", "float[N, 4, 1, 1] y",
    )  # fmt: skip


TWICE: dict[type[InPlacePass], tuple[InPlacePass, Callable[[], ir.Model]]] = {
    Canonicalize: (Canonicalize(), pooled),
    ResolveBits: (ResolveBits(), net),
    FreezeWeights: (FreezeWeights(), lambda: lowered_up_to(FreezeWeights)),
    FoldBatchNorm: (FoldBatchNorm(), lambda: lowered_up_to(FoldBatchNorm)),
    QuantizeGlue: (
        QuantizeGlue(), lambda: adaptive("t = Transpose<perm = [0, 1, 3, 2]>(q)\n"),
    ),
    LowerToInteger: (LowerToInteger(), lambda: lowered_up_to(None)),
    UseRawPixels: (UseRawPixels(), dialect_of_pixels),
    ExpandQLinear: (ExpandQLinear(), lambda: file_of(qop())),
    ImportQDQ: (ImportQDQ(), lambda: file_of(qdq())),
    FoldConstants: (
        FoldConstants(), lambda: standard("q = QuantizeLinear(k, s, z)  y = MatMul(x, q)"),
    ),
    FreeBatch: (FreeBatch(), lambda: standard("y = Relu(x)", "float[2, 4] x")),
    OwnWeights: (OwnWeights(), shared_weight),
    QuantizeOutput: (QuantizeOutput(-1, 3), lambda: standard("y = Relu(x)")),
    RespellForeign: (RespellForeign(), lambda: standard("t = Relu(x)  y = Softmax(t)")),
}  # fmt: skip


def every_pass() -> set[type[InPlacePass]]:
    """The passes that any module of `passes` has; a check is no pass."""
    for info in pkgutil.walk_packages(passes.__path__, "passes."):
        if not info.name.startswith("passes.emit"):
            importlib.import_module(info.name)
    return {
        kind
        for kind in InPlacePass.__subclasses__()
        if kind.__module__.startswith("passes.") and kind is not CheckWellFormed
    }


def test_every_pass_has_a_graph_below() -> None:
    assert every_pass() == set(TWICE)
    emitters = Path(passes.__path__[0]) / "emit"
    assert not [p for p in emitters.rglob("*.py") if "InPlacePass" in p.read_text()]


@pytest.mark.parametrize("kind", TWICE, ids=lambda kind: kind.__name__)
def test_modified_is_exact(kind: type[InPlacePass]) -> None:
    """The first run changes the graph and says so, the second neither."""
    step, make = TWICE[kind]
    model = make()
    states = [content(model)]
    for expected in (True, False):
        assert step(model).modified is expected
        states.append(content(model))
    assert states[0] != states[1] and states[1] == states[2]


def content(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def test_a_check_changes_nothing() -> None:
    model = net()
    before = content(model)
    assert not CheckWellFormed("reading")(model).modified
    assert content(model) == before


def normalised_twice() -> ir.Model:
    model = lowered_up_to(FoldBatchNorm)
    norm = first(model, "BatchNormalization")
    again = ir.node("BatchNormalization", [norm.outputs[0], *norm.inputs[1:]], name="again")
    again.outputs[0].name = "twice"
    for node, index in list(norm.outputs[0].uses()):
        if node is not again:
            node.replace_input_with(index, again.outputs[0])
    model.graph.insert_after(norm, [again])
    return model


def test_a_norm_behind_a_norm_is_folded_once_the_first_one_is() -> None:
    model, step = normalised_twice(), FoldBatchNorm(allow_float=True)
    assert step(model).modified
    assert all(node.op_type != "BatchNormalization" for node in model.graph)
    assert not step(model).modified
    with pytest.raises(UserError, match="only Conv, or a linear layer of"):
        FoldBatchNorm().call(normalised_twice())
