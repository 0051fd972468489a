"""Adaptive graphs evaluated by ONNX's own reference, in float32 or in float64.

The evaluator knows nothing of qtool's: `FakeQuant` is written here again, from its definition.
"""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from qtool.core.grids import activation_window, weight_limit

Values = dict[str, np.ndarray]


def fake_quant(results: Values) -> type[OpRun]:
    """Return ``qtool::FakeQuant`` of one candidate, in its input's precision.

    Args:
        results: those of quantizers by name, which are given instead of computed.
    """

    class FakeQuant(OpRun):
        op_domain = "qtool"

        def _run(
            self, x, steps, name=None, role=None, bits=None, signed=None, zero_points=None
        ):
            if name in results and role != "weight":
                return (results[name],)
            width, step = bits[0], np.abs(steps[0])
            if role == "weight":
                step = step.reshape(-1, *[1] * (x.ndim - 1))
                codes = np.rint(x / step).clip(-weight_limit(width), weight_limit(width))
                codes = np.where(x >= 0, 1, -1) if width == 1 else codes
                return ((codes * step).astype(x.dtype),)
            own = zero_points[0] if zero_points else None
            window = activation_window(width, bool(signed), own)
            lo, hi = window.lo - window.zero_point, window.hi - window.zero_point
            return ((np.rint(x / step[0]).clip(lo, hi) * step[0]).astype(x.dtype),)

    return FakeQuant


class Swish(OpRun):
    """The operator that Canonicalize makes of ``x * sigmoid(x)``."""

    op_domain = "test"

    def _run(self, x, alpha=1.0):
        return ((x * (1 / (1 + np.exp(-x)))).astype(x.dtype),)


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
    """Return the output in float32."""
    result: np.ndarray = _evaluator(_proto(model), {}).run(None, {"x": x})[0]
    return result


def values(model: ir.Model, x: np.ndarray, results: Values | None = None) -> Values:
    """Return every tensor in float64.

    Args:
        model: the graph; its constants are taken as they are.
        x: images.
        results: of quantizers by name; those that are missing are computed.
    """
    proto = _proto(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            wide = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    evaluator = _evaluator(proto, results or {})
    found: Values = evaluator.run(None, {"x": x.astype(np.float64)}, intermediate=True)
    return found


def _proto(model: ir.Model) -> onnx.ModelProto:
    copy = model.clone()
    copy.opset_imports.pop("com.microsoft", None)
    for node in copy.graph:
        if node.op_type == "Swish":
            # Opset 24 is the first with it, and changes none of the others.
            node.domain = "test"
    copy.opset_imports["test"] = copy.opset_imports["qtool"] = 1
    proto: onnx.ModelProto = ir.to_proto(copy)
    return proto


def _evaluator(proto: onnx.ModelProto, results: Values) -> ReferenceEvaluator:
    return ReferenceEvaluator(proto, new_ops=[fake_quant(results), Swish, MaxPool])
