"""From a run directory to artifacts, and from an artifact back to the integer dialect."""

from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from passes.emit.onnx.target import compact, write_onnx
from passes.emit.tvm.target import Note, TvmOptions, check_tvm, write_tvm
from passes.pipelines import lower
from passes.raw_pixels import UseRawPixels
from qtool.core.errors import UserError
from qtool.core.files import refuse_existing, write_bytes
from qtool.core.selection import read_selection
from qtool.export.adaptive import RunSource
from qtool.export.source import AdaptiveSource


def integer_model(
    source: AdaptiveSource, bits: str | None, allow_float: bool = False
) -> ir.Model:
    """Return `source` in the integer dialect, at its own bits or at those that `bits` names.

    Raises:
        UserError: bits that were not trained; without `allow_float` an operator with no
            integer form.
    """
    selection = source.selection() if bits is None else read_selection(bits)
    dialect = lower(source.graph(), selection, allow_float)
    dialect.metadata_props.update(source.metadata())
    return dialect


@dataclass(frozen=True)
class ExportOptions:
    """What `export` makes of a run.

    Args:
        target: "onnx" or "tvm".
        bits: what `qtool.core.selection.read_selection` reads; None for the run's own.
        form: ONNX flavour, a key of `FORMS`.
        raw_pixels: the model takes uint8 pixels instead of pixel / 255.
        allow_float: keep what has no integer form as marked float islands.
        tvm: what only the target "tvm" takes.
    """

    target: str = "onnx"
    bits: str | None = None
    form: str = "qdq"
    raw_pixels: bool = False
    allow_float: bool = False
    tvm: TvmOptions = field(default_factory=TvmOptions)


def export(
    folder: Path,
    options: ExportOptions,
    output: Path | None,
    force: bool,
    note: Note | None = None,
) -> None:
    """Export the run in `folder` to `output`, None for only ``--emit-ir``."""
    check_output(options.target, output, options.tvm, force)
    dialect = integer_model(RunSource.open(folder), options.bits, options.allow_float)
    if options.raw_pixels:
        UseRawPixels()(dialect)
    write(dialect, options.target, output, options.form, options.tvm, note)


def check_output(target: str, output: Path | None, tvm: TvmOptions, force: bool) -> None:
    """Raise `UserError` for what would fail after long work: before it begins."""
    tvm.refuse_for(target)
    if output is None and tvm.emit_ir is None:
        raise UserError("missing option -o / --output: the file to write")
    if target == "tvm":
        check_tvm(output, tvm, force)
    elif output is not None:
        refuse_existing(output, force)


def write(
    dialect: ir.Model,
    target: str,
    output: Path | None,
    form: str,
    tvm: TvmOptions,
    note: Note | None,
) -> None:
    """Write `dialect` as an artifact of `target`, in the ONNX flavour `form`."""
    if target == "tvm":
        write_tvm(dialect, output, tvm, note)
    elif output is not None:
        write_onnx(dialect, output, form)


def export_float(folder: Path, output: Path) -> None:
    """Write the run's float network as ONNX, BatchNorm folded: what size is compared with."""
    from qtool.export.trace import trace_float
    from qtool.networks import load_float
    from qtool.runs.run import Run

    run = Run.open(folder)
    proto = compact(trace_float(load_float(run), run.input_shape))
    del proto.graph.value_info[:]  # shape inference says it again
    write_bytes(output, proto.SerializeToString())
