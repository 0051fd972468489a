"""The order of the passes; it is written nowhere else.

With the environment variable ``QTOOL_DEBUG=1`` the graph is checked before the first pass and
after each one (`passes.well_formed`); what passes require and ensure is checked always.
"""

import os
from collections.abc import Iterator, Sequence

import onnx_ir as ir
from onnx_ir.passes import InvariantError, Sequential
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)

from passes.adaptive.canonicalize import Canonicalize
from passes.adaptive.fold_batchnorm import FoldBatchNorm
from passes.adaptive.freeze_weights import FreezeWeights
from passes.adaptive.quantize_glue import QuantizeGlue
from passes.adaptive.resolve_bits import ResolveBits
from passes.graph import collection_paused
from passes.importing.expand_qlinear import ExpandQLinear, is_operator_form
from passes.importing.fold_constants import FoldConstants
from passes.importing.free_batch import FreeBatch
from passes.importing.import_qdq import ImportQDQ
from passes.importing.own_weights import OwnWeights
from passes.importing.quantize_output import QuantizeOutput
from passes.importing.respell_foreign import RespellForeign
from passes.lower.lower_to_integer import LowerToInteger
from passes.well_formed import CheckWellFormed
from qtool.core.dialect import read_program
from qtool.core.errors import UserError
from qtool.core.selection import Selection
from qtool.core.validate_program import check_program

DEBUG = "QTOOL_DEBUG"


def lower(model: ir.Model, selection: Selection, allow_float: bool = False) -> ir.Model:
    """Adaptive graph -> integer dialect, in place.

    Args:
        model: result of `qtool.export.trace.trace`.
        selection: bits of every layer; 16 and 32 are float weights.
        allow_float: keep what has no integer form as marked float islands.

    Raises:
        UserError: an operator without an integer form, or a result that `check_program`
            would refuse in a file too.
    """
    dialect = _run(
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
    check_program(read_program(dialect))
    return dialect


def import_qdq(model: ir.Model, allow_float: bool = False) -> ir.Model:
    """ONNX QDQ or QLinear file -> integer dialect, in place.

    Args:
        model: a file; the float islands that its own metadata lists are kept.
        allow_float: keep what has no integer form as further float islands.
    """
    # The operator form is QDQ with each group in one node: spelled out, it needs no reader of
    # its own. ONNX infers no shapes across contrib operators, so they come after.
    expand = (ExpandQLinear(), ShapeInferencePass()) if is_operator_form(model) else ()
    return _run(model, *expand, Canonicalize(), ImportQDQ(allow_float=allow_float))


def expand_foreign(model: ir.Model) -> ir.Model:
    """ONNX of another tool -> standard operators with inferable shapes, in place."""
    return _run(
        model,
        RemoveInitializersFromInputsPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        # Shape inference knows no contrib operators.
        ExpandQLinear(),
        IdentityEliminationPass(),
        RemoveUnusedNodesPass(),
        FreeBatch(),
    )


def import_foreign(
    model: ir.Model,
    output_range: tuple[float, float] | None,
    notes: list[str],
    allow_float: bool = False,
) -> ir.Model:
    """QDQ graph of another tool -> integer dialect, in place.

    Args:
        model: result of `expand_foreign`, with inferred shapes.
        output_range: smallest and largest value of a float output that shall have a grid.
        notes: a sentence is appended for each change of what the model computes.
        allow_float: keep what has no integer form as marked float islands.
    """
    grid = () if output_range is None else (QuantizeOutput(*output_range),)
    return _run(
        model,
        FoldConstants(),
        OwnWeights(),
        # BatchNorm is folded into layers by their names.
        RespellForeign(notes),
        *grid,
        FoldBatchNorm(allow_float),
        Canonicalize(),
        ImportQDQ(notes, allow_float),
    )


def _run(model: ir.Model, *passes: ir.passes.PassBase) -> ir.Model:
    try:
        with collection_paused():
            return Sequential(*(_checked(passes) if is_debugging() else passes))(model).model
    except ir.passes.PassError as error:
        # onnx-ir wraps what a pass raises; the user wants the reason itself, and whoever
        # wrote the pass the broken condition.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError | InvariantError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None


def is_debugging() -> bool:
    """True where the graph is to be checked between passes."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def _checked(passes: Sequence[ir.passes.PassBase]) -> Iterator[ir.passes.PassBase]:
    """Yield the passes, with a check before the first and after each of them."""
    yield CheckWellFormed("reading")
    for step in passes:
        yield from (step, CheckWellFormed(type(step).__name__))
