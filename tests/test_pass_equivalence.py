"""Every pass on random graphs: it keeps the numbers, and a second run changes nothing."""

import numpy as np
import onnx_ir as ir
import pytest
from fuzz import images, make
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from passes.adaptive.canonicalize import Canonicalize
from passes.adaptive.fold_batchnorm import FoldBatchNorm
from passes.adaptive.freeze_weights import FreezeWeights
from passes.adaptive.quantize_glue import QuantizeGlue
from passes.adaptive.resolve_bits import ResolveBits
from passes.emit.onnx.onnx_qdq import emit_onnx_qdq
from passes.emit.onnx.onnx_qop import emit_onnx_qop
from passes.importing.expand_qlinear import ExpandQLinear
from passes.importing.import_qdq import ImportQDQ
from passes.lower.lower_to_integer import LowerToInteger
from passes.pipelines import lower
from passes.raw_pixels import UseRawPixels
from qtool.core.errors import UnsupportedError
from qtool.core.grids import activation_window, weight_limit
from qtool.core.selection import Selection

SEEDS = range(40)
FLOAT_PASSES = (Canonicalize, ResolveBits, FreezeWeights, FoldBatchNorm, QuantizeGlue)


class FakeQuant(OpRun):
    """``qtool::FakeQuant`` of one candidate, in float32."""

    op_domain = "qtool"

    def _run(self, x, steps, name=None, role=None, bits=None, signed=None, zero_points=None):
        width, step = bits[0], np.abs(steps[0])
        if role == "weight":
            step = step.reshape(-1, *[1] * (x.ndim - 1))
            codes = np.rint(x / step).clip(-weight_limit(width), weight_limit(width))
            codes = np.where(x >= 0, 1, -1) if width == 1 else codes
            return ((codes * step).astype(np.float32),)
        own = zero_points[0] if zero_points else None
        window = activation_window(width, bool(signed), own)
        lo, hi = window.lo - window.zero_point, window.hi - window.zero_point
        return ((np.rint(x / step[0]).clip(lo, hi) * step[0]).astype(np.float32),)


class Swish(OpRun):
    """The operator that Canonicalize makes of ``x * sigmoid(x)``."""

    def _run(self, x, alpha=1.0):
        return ((x * (1 / (1 + np.exp(-x)))).astype(np.float32),)


class MaxPool(OpRun):
    """ONNX's own evaluator swaps the pads of asymmetric borders."""

    def _run(self, x, kernel_shape=None, strides=None, pads=None, **_):
        top, left, bottom, right = pads
        border = ((0, 0), (0, 0), (top, bottom), (left, right))
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(x, border, constant_values=-np.inf), kernel_shape, axis=(2, 3)
        )
        return (windows[:, :, :: strides[0], :: strides[1]].max((4, 5)),)


def evaluate(model: ir.Model, x: np.ndarray) -> np.ndarray:
    # Opset 24 is the first with Swish, and changes none of the others.
    copy = model.clone()
    copy.opset_imports.pop("com.microsoft", None)
    for node in copy.graph:
        if node.op_type == "Swish":
            node.domain = "test"
    copy.opset_imports["test"] = copy.opset_imports["qtool"] = 1
    Swish.op_domain = "test"
    evaluator = ReferenceEvaluator(ir.to_proto(copy), new_ops=[FakeQuant, Swish, MaxPool])
    result: np.ndarray = evaluator.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("seed", SEEDS)
def test_float_passes_keep_the_numbers_and_are_idempotent(seed: int) -> None:
    model, shape, _ = make(seed)
    x = images(seed, shape, 2)
    before = evaluate(model, x)
    for kind in FLOAT_PASSES:
        kind()(model)
        after = evaluate(model, x)
        if kind is FoldBatchNorm:
            # Another order of float operations: a value on a rounding boundary may move.
            assert np.isclose(after, before, atol=1e-4).mean() > 0.6, kind.__name__
            before = after
        assert np.array_equal(after, before), kind.__name__
        assert not kind()(model).modified, kind.__name__


@pytest.mark.parametrize("seed", SEEDS)
def test_integer_passes_are_idempotent(seed: int) -> None:
    model, _, raw = make(seed)
    try:
        dialect = lower(model, Selection())
    except UnsupportedError as error:
        assert "ONNX Runtime takes" in str(error)
        return
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
