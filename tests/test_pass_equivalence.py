"""Every pass on random graphs: it keeps the numbers, and a second run changes nothing.

Three statements, each about every element of every tensor:

1. Canonicalize, ResolveBits, FreezeWeights, QuantizeGlue: the same float32 results exactly.
2. FoldBatchNorm: what every quantizer reads is the same to 2^-22 of the terms of the
   convolution that was folded before it, and exactly the same where none was. (It computes
   scale and bias in float64 and rounds each once, to float32.)
3. LowerToInteger: every code is that of the fake-quantized graph, whose operators are
   evaluated in float64 on the codes before them, with biases as they were rounded. Where it is
   not, the value lies on a rounding boundary to float32's error (`slack`), the code beside it
   was taken, and it is counted (`TIES`).

What remains: operators are compared one by one, each on the integers before it. A
fake-quantized network as a whole rounds at its grids alone, sums in float32 and keeps its
biases in float; where such an error crosses a boundary, it differs from the integers, and so
may all that follows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from float_graph import Values, evaluate, values
from fuzz import images, make

from passes.adaptive.canonicalize import Canonicalize
from passes.adaptive.fold_batchnorm import FoldBatchNorm
from passes.adaptive.freeze_weights import FreezeWeights
from passes.adaptive.quantize_glue import QuantizeGlue
from passes.adaptive.resolve_bits import ResolveBits
from passes.emit.onnx.onnx_qdq import emit_onnx_qdq
from passes.emit.onnx.onnx_qop import emit_onnx_qop
from passes.graph import FakeQuant, as_fake_quant, fake_quants
from passes.importing.expand_qlinear import ExpandQLinear
from passes.importing.import_qdq import ImportQDQ
from passes.lower import lower_to_integer
from passes.lower.integer_builder import Quantized
from passes.lower.lower_to_integer import LowerToInteger
from passes.lower.lowering import Lowering
from passes.pipelines import lower
from passes.raw_pixels import UseRawPixels
from qtool.core.dialect import Conv, Gemm, Op, Program, read_program
from qtool.core.errors import UnsupportedError
from qtool.core.selection import Selection
from runtimes.reference import ReferenceRuntime

SEEDS = range(40)
FLOAT_PASSES = (Canonicalize, ResolveBits, FreezeWeights, FoldBatchNorm, QuantizeGlue)
# Codes on a rounding boundary by seed, 304 of 29,966 in all: HardSigmoid(0) = 127.5 / 255 in 1
# and 11, a change of grid in 18. ONNX Runtime's float32 has the boundary itself, float64 what
# is a little beside it.
TIES = {1: 40, 11: 245, 18: 19}


def activations(model: ir.Model) -> list[FakeQuant]:
    return [view for view in fake_quants(model) if view.role != "weight"]


def of_type(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def upstream(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes between quantizers and `value`."""
    node = value.producer()
    if node is not None and as_fake_quant(node) is None:
        yield node
        for source in node.inputs:
            if source is not None:
                yield from upstream(source)


@pytest.mark.parametrize("seed", SEEDS)
def test_float_passes_keep_the_numbers_and_are_idempotent(seed: int) -> None:
    model, shape, _ = make(seed)
    x = images(seed, shape, 2)
    before = evaluate(model, x)
    for kind in FLOAT_PASSES:
        if kind is FoldBatchNorm:
            fold(model, x)
            before = evaluate(model, x)
        else:
            kind()(model)
            assert np.array_equal(evaluate(model, x), before), kind.__name__
        assert not kind()(model).modified, kind.__name__


def fold(model: ir.Model, x: np.ndarray) -> None:
    """Run FoldBatchNorm; fail unless quantizers read what they did before."""
    norms = of_type(model, "BatchNormalization")
    convs = {norm: norm.inputs[0].producer() for norm in norms if norm.inputs[0] is not None}
    before = values(model, x)
    read = {view.name: before[str(view.source.name)] for view in activations(model)}
    made = {view.name: before[str(view.node.outputs[0].name)] for view in activations(model)}
    FoldBatchNorm()(model)
    left = of_type(model, "BatchNormalization")
    folded = {conv for norm, conv in convs.items() if norm not in left}
    after = values(model, x, made)
    for view in activations(model):
        error = np.abs(after[str(view.source.name)] - read[view.name]).max()
        layers = [terms(node, after) for node in upstream(view.source) if node in folded]
        assert error <= 2.0**-22 * max(layers, default=0.0), view.name


def terms(conv: ir.Node, known: Values) -> float:
    """A bound of the sum of the magnitudes of a convolution's terms."""
    x, w, b = (np.abs(known[str(value.name)]) for value in conv.inputs if value is not None)
    return float((x.max() * w.reshape(len(w), -1).sum(1) + b).max())


# Codes


@dataclass(frozen=True)
class Lowered:
    """A fake-quantized graph, and its integers on `x`.

    Args:
        floats: as LowerToInteger took it.
        program: what it made.
        twins: the integer tensor of each quantizer, by the quantizer's name.
        codes: every integer tensor, by its own name.
    """

    floats: ir.Model
    program: Program
    twins: dict[str, Quantized]
    codes: Values


def lowered(model: ir.Model, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Lowered:
    walks: list[Lowering] = []

    class Recorded(Lowering):
        def __init__(self, **arguments: bool) -> None:
            super().__init__(**arguments)
            walks.append(self)

    monkeypatch.setattr(lower_to_integer, "Lowering", Recorded)
    for kind in FLOAT_PASSES:
        kind()(model)
    floats = model.clone()
    results = {view.name: view.node.outputs[0] for view in activations(model)}
    LowerToInteger().call(model)
    twins = {name: walks[0].quantized[value] for name, value in results.items()}
    program = read_program(model)
    codes: Values = dict(ReferenceRuntime(program).intermediates(x))
    return Lowered(floats, program, twins, codes)


def real_bias(core: ir.Node | None, known: Values) -> np.ndarray | float:
    """What a layer adds to each channel of its sums, 0.0 where it is no layer."""
    if core is None or core.op_type not in ("Conv", "Gemm", "BatchNormalization"):
        return 0.0
    constants = [known[str(value.name)] for value in core.inputs[1:] if value is not None]
    if core.op_type != "BatchNormalization":
        return constants[1] if len(constants) > 1 else 0.0
    gamma, beta, mean, var = constants
    return beta - mean * gamma / np.sqrt(var + core.attributes.get_float("epsilon", 1e-5))


def real_values(view: FakeQuant, op: Op | None, known: Values) -> np.ndarray:
    """What a quantizer reads, with its layer's bias as the integers have it."""
    chain, value = [], view.source
    while (node := value.producer()) is not None and node.op_type in ("Relu", "Clip"):
        chain.append(node)
        value = node.inputs[0]  # type: ignore[assignment]
    result = known[str(value.name)]
    if isinstance(op, Conv | Gemm):
        unit = np.float64(np.float32(op.x.scale) * op.w_scale)
        change = op.bias * unit - real_bias(value.producer(), known)
        assert (np.abs(change) <= unit * (0.5 + 2.0**-20)).all()
        result = result + np.reshape(change, (1, -1, *[1] * (result.ndim - 2)))
    for node in reversed(chain):
        bounds = [known[str(v.name)] for v in node.inputs[1:] if v is not None] or [0.0]
        result = np.clip(result, *[*bounds, np.inf][:2])
    return result


def slack(view: FakeQuant, op: Op | None, known: Values, real: np.ndarray) -> np.ndarray:
    """How far from `real`, in codes, float32 arithmetic may be: 2^-22 of what it adds up."""
    magnitude = np.abs(real) + view.grid.zero_point
    if not isinstance(op, Conv | Gemm):  # whose sums are integers
        node = next(upstream(view.source), None)
        read = [] if node is None else [v for v in node.inputs if v is not None]
        magnitude = magnitude + sum(
            np.abs(known[str(v.name)]).max() / view.grid.scale + 255 for v in read
        )
    return 2.0**-22 * magnitude


def codes_of(values: np.ndarray, view: FakeQuant) -> np.ndarray:
    """Round values in units of the grid, half to even, into the window."""
    window = view.window
    return (np.rint(values) + window.zero_point).clip(window.lo, window.hi)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_code_is_the_fake_quantized_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shape, _ = make(seed)
    x = images(seed, shape, 2)
    found, ties = lowered(model, x, monkeypatch), 0
    results = {
        name: (found.codes[str(twin.value.name)] - np.float64(twin.grid.zero_point))
        * np.float64(twin.grid.scale)
        for name, twin in found.twins.items()
    }
    known, ops = values(found.floats, x, results), {op.output: op for op in found.program.ops}
    for view in activations(found.floats):
        twin = found.twins[view.name]
        assert twin.grid == view.grid
        got, op = found.codes[str(twin.value.name)], ops.get(str(twin.value.name))
        real = real_values(view, op, known) / np.float64(view.grid.scale)
        near = slack(view, op, known, real)
        low, high = (codes_of(real + change, view) for change in (-near, near))
        assert ((low <= got) & (got <= high)).all(), (view.name, op)
        ties += int((got != codes_of(real, view)).sum())
    assert ties == TIES.get(seed, 0)


def test_a_network_that_onnx_runtime_would_not_load_is_refused() -> None:
    with pytest.raises(UnsupportedError) as error:
        lower(make(1205)[0], Selection())
    assert str(error.value) == (
        "tensor t29: average with factor 319; ONNX Runtime takes 2^-32 to 256"
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_integer_passes_are_idempotent(seed: int) -> None:
    model, _, raw = make(seed)
    dialect = lower(model, Selection())
    assert not LowerToInteger()(dialect).modified
    for emit in (emit_onnx_qdq, emit_onnx_qop):
        emitted = ir.from_proto(ir.to_proto(emit(dialect, {})))
        assert ExpandQLinear()(emitted).modified == (emit is emit_onnx_qop)
        assert not ExpandQLinear()(emitted).modified
    if raw:
        assert UseRawPixels()(dialect).modified and not UseRawPixels()(dialect).modified
    assert not ImportQDQ()(dialect).modified


def test_a_refused_model_is_left_as_it_was() -> None:
    model, _, _ = make(3)
    node = ir.node("Erf", [model.graph.outputs[0]], name="erf")
    model.graph.append(node)
    result = node.outputs[0]
    result.name, result.type = "out", ir.TensorType(ir.DataType.FLOAT)
    result.shape = model.graph.outputs[0].shape
    model.graph.outputs[:] = [result]
    for kind in FLOAT_PASSES:
        kind()(model)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(UnsupportedError, match="output out: no grid reaches it"):
        LowerToInteger().call(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
