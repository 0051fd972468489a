"""From a run directory to artifacts, and from an artifact back to the integer dialect."""

from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from passes.emit.base import Inspect, Note, Target
from passes.emit.onnx.onnx_file import compact
from passes.emit.onnx.target import OnnxTarget
from passes.pipelines import lower
from passes.raw_pixels import UseRawPixels
from qtool.core.files import write_bytes
from qtool.core.selection import Selection, read_selection
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
    return integer_model_at(source, selection, allow_float)


def integer_model_at(
    source: AdaptiveSource, selection: Selection, allow_float: bool = False
) -> ir.Model:
    """Return `source` in the integer dialect at `selection`; raises as `integer_model`."""
    dialect = lower(source.graph(), selection, allow_float)
    dialect.metadata_props.update(source.metadata(selection))
    return dialect


@dataclass(frozen=True)
class ExportOptions:
    """What `export` makes of a run.

    Args:
        target: what is written, with its own options.
        bits: what `qtool.core.selection.read_selection` reads; None for the run's own.
        raw_pixels: the model takes uint8 pixels instead of pixel / 255.
        allow_float: keep what has no integer form as marked float islands.
    """

    target: Target = field(default_factory=OnnxTarget)
    bits: str | None = None
    raw_pixels: bool = False
    allow_float: bool = False


def export(
    folder: Path,
    options: ExportOptions,
    output: Path | None,
    force: bool,
    note: Note | None = None,
    inspect: Inspect | None = None,
) -> None:
    """Export the run in `folder`.

    Args:
        folder: the run.
        options: what becomes of it.
        output: the artifact; None where the target writes another file.
        force: existing files may be replaced.
        note: is told what is going on.
        inspect: is given what will be written, before it is; its `UserError` refuses it. The
            command's is `qtool.witness.witness.Witness`; without one no torch is needed.
    """
    options.target.check(output, force)
    dialect = integer_model(RunSource.open(folder), options.bits, options.allow_float)
    if options.raw_pixels:
        UseRawPixels()(dialect)
    if inspect is not None:
        inspect(dialect)
    options.target.write(dialect, output, note)


def export_float(folder: Path, output: Path) -> None:
    """Write the run's float network as ONNX, BatchNorm folded: what size is compared with."""
    from qtool.export.trace import trace_float
    from qtool.networks import load_float
    from qtool.runs.run import Run

    run = Run.open(folder)
    proto = compact(trace_float(load_float(run), run.input_shape))
    del proto.graph.value_info[:]  # shape inference says it again
    write_bytes(output, proto.SerializeToString())
