"""From a run directory to artifacts, and from an artifact back to the integer dialect."""

from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

import qtool
from passes.emit.base import Note, Target
from passes.emit.facts import DATASET_KEY, FRAMES_KEY, VERSION_KEY
from passes.emit.onnx.onnx_file import compact
from passes.emit.onnx.target import OnnxTarget
from passes.pipelines import lower
from passes.raw_pixels import UseRawPixels
from qtool.core.files import write_bytes
from qtool.core.selection import Selection, read_selection


def adaptive_graph(
    folder: Path, chosen: Selection | None = None
) -> tuple[ir.Model, Selection, dict[str, str]]:
    """Trace the model of a run, as it is deployed at `chosen` bits (None: its own).

    Returns:
        The adaptive graph, the bits, and metadata for artifacts.
    """
    from qtool.export.adaptive import traced
    from qtool.runs.run import Run

    run = Run.open(folder)
    selection = run.selection() if chosen is None else chosen
    metadata = {DATASET_KEY: run.config.dataset, VERSION_KEY: qtool.__version__}
    if run.config.frames:
        metadata[FRAMES_KEY] = str(run.config.frames)
    return traced(run, selection), selection, metadata


def integer_model(folder: Path, bits: str | None, allow_float: bool = False) -> ir.Model:
    """Return the run in the integer dialect, at its own bits or at those that `bits` names.

    Raises:
        UserError: bits that were not trained; without `allow_float` an operator with no
            integer form.
    """
    chosen = None if bits is None else read_selection(bits)
    graph, selection, metadata = adaptive_graph(folder, chosen)
    dialect = lower(graph, selection, allow_float)
    dialect.metadata_props.update(metadata)
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
) -> None:
    """Export the run in `folder` to `output`; None where the target writes another file."""
    options.target.check(output, force)
    dialect = integer_model(folder, options.bits, options.allow_float)
    if options.raw_pixels:
        UseRawPixels()(dialect)
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
