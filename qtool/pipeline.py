"""From a run directory to artifacts, and from an artifact back to the integer dialect."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx.checker import ValidationError

import qtool
from passes.emit.onnx_qdq import emit_onnx_qdq
from passes.emit.onnx_qop import emit_onnx_qop
from passes.pipelines import import_qdq, lower
from passes.raw_pixels import UseRawPixels
from qtool.describe import DATASET_KEY, FRAMES_KEY, VERSION_KEY
from qtool.dialect import Program, read_program
from qtool.errors import UserError
from qtool.files import refuse_existing, write_bytes
from qtool.qspec import Selection, read_selection
from qtool.tvm_export import Note, TvmOptions, check_tvm, write_tvm
from qtool.validate import check_graph, check_storage
from qtool.validate_program import check_program


def adaptive_graph(
    folder: Path, chosen: Selection | None = None
) -> tuple[ir.Model, Selection, dict[str, str]]:
    """Trace the model of a run, as it is deployed at `chosen` bits (None: its own).

    Returns:
        The adaptive graph, the bits, and metadata for artifacts.
    """
    from qtool.adaptive import traced
    from qtool.run import Run

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


FORMS = {"qdq": emit_onnx_qdq, "qop": emit_onnx_qop}


def write_onnx(dialect: ir.Model, path: Path, form: str = "qdq") -> None:
    """Write `dialect` as an ONNX file in QDQ or operator form (`FORMS`)."""
    keys = (DATASET_KEY, FRAMES_KEY, VERSION_KEY)
    metadata = {k: v for k, v in dialect.metadata_props.items() if k in keys}
    proto = _compact(FORMS[form](dialect, metadata))
    # Shape inference does not know the contrib operators of the operator form.
    onnx.checker.check_model(proto, full_check=form == "qdq")
    write_bytes(path, proto.SerializeToString())


def _compact(model: ir.Model) -> onnx.ModelProto:
    """Return `model` without what its initializers say again."""
    proto: onnx.ModelProto = ir.to_proto(model)
    stored = {tensor.name for tensor in proto.graph.initializer}
    kept = [info for info in proto.graph.value_info if info.name not in stored]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    del proto.graph.metadata_props[:]
    return proto


@dataclass(frozen=True)
class ExportOptions:
    """What `export` makes of a run.

    Args:
        target: "onnx" or "tvm".
        bits: what `qtool.qspec.read_selection` reads; None for the run's own.
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
    dialect = integer_model(folder, options.bits, options.allow_float)
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
    from qtool.frontends.pretrain import load_float
    from qtool.run import Run
    from qtool.trace import trace_float

    run = Run.open(folder)
    proto = _compact(trace_float(load_float(run), run.input_shape))
    del proto.graph.value_info[:]  # shape inference says it again
    write_bytes(output, proto.SerializeToString())


def read_onnx(path: Path, allow_float: bool = False) -> Program:
    """Return an ONNX QDQ file as the integer dialect.

    Args:
        path: the file; float islands that its own metadata lists are kept.
        allow_float: keep what has no integer form as further float islands.

    Raises:
        UserError: missing, damaged, or with an operator that is not integer; says which.
    """
    return read_program(read_dialect(path, allow_float))


def read_dialect(path: Path, allow_float: bool = False) -> ir.Model:
    """Return an ONNX QDQ file as the graph of the integer dialect; see `read_onnx`."""
    model = load_graph(path)
    try:
        dialect = import_qdq(model, allow_float)
        check_program(read_program(dialect))
        return dialect
    except UserError as error:
        raise type(error)(f"model {path}: {one_line(error)}") from None


def load_graph(
    path: Path, prepare: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
) -> ir.Model:
    """Return the graph of an ONNX file, with inferred shapes.

    Args:
        path: the file.
        prepare: rewrites the model before shape inference.

    Raises:
        UserError: missing or damaged; says what is wrong.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
        check_storage(proto)
        onnx.checker.check_model(proto)
        if prepare is not None:
            proto = prepare(proto)
        inferred = onnx.shape_inference.infer_shapes(
            proto, strict_mode=True, data_prop=prepare is not None
        )
        check_graph(inferred)
        return ir.from_proto(inferred)
    except FileNotFoundError:
        raise UserError(f"model {path} does not exist") from None
    except UserError as error:
        raise type(error)(f"model {path}: {one_line(error)}") from None
    except (ValidationError, onnx.shape_inference.InferenceError, OSError) as error:
        raise UserError(f"model {path} is not a valid ONNX file: {one_line(error)}") from None
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise UserError(f"model {path} is truncated or not ONNX: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """Return the message in one line: names in a damaged file hold anything."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line)[:300] or type(error).__name__
