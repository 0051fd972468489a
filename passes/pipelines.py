"""The order of the passes; it is written nowhere else."""

import onnx_ir as ir
from onnx_ir.passes import Sequential

from passes.canonicalize import Canonicalize
from passes.expand_qlinear import ExpandQLinear
from passes.fold_batchnorm import FoldBatchNorm
from passes.freeze_weights import FreezeWeights
from passes.import_qdq import ImportQDQ
from passes.lower_to_integer import LowerToInteger
from passes.quantize_glue import QuantizeGlue
from passes.resolve_bits import ResolveBits
from qtool.errors import UserError
from qtool.qspec import Selection


def lower(model: ir.Model, selection: Selection, allow_float: bool = False) -> ir.Model:
    """Adaptive graph -> integer dialect, in place.

    Args:
        model: result of `qtool.trace.trace`.
        selection: bits of every layer; 16 and 32 are float weights.
        allow_float: keep what has no integer form as marked float islands.
    """
    return _run(
        model,
        # Grids move past data movement only once that has one spelling.
        Canonicalize(),
        ResolveBits(selection),
        # Codes must be fixed before BatchNorm changes the scale that they were made with.
        FreezeWeights(allow_float),
        # Biases are rounded in LowerToInteger, after BatchNorm has added to them.
        FoldBatchNorm(allow_float),
        QuantizeGlue(allow_float),
        LowerToInteger(allow_float),
    )


def import_qdq(model: ir.Model, allow_float: bool = False) -> ir.Model:
    """ONNX QDQ or QLinear file -> integer dialect, in place.

    Args:
        model: a file; the float islands that its own metadata lists are kept.
        allow_float: keep what has no integer form as further float islands.
    """
    return _run(
        model,
        # The operator form is QDQ with each group in one node: spelled out, it needs no reader
        # of its own.
        ExpandQLinear(),
        Canonicalize(),
        ImportQDQ(allow_float),
    )


def _run(model: ir.Model, *passes: ir.passes.PassBase) -> ir.Model:
    try:
        return Sequential(*passes)(model).model
    except ir.passes.PassError as error:
        # onnx-ir wraps what a pass raises; the user wants the reason itself.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
