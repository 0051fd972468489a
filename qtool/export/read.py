"""ONNX file -> integer dialect."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx.checker import ValidationError

from passes.emit.onnx.shared_file import join
from passes.pipelines import import_qdq
from qtool.core.dialect import Program, read_program
from qtool.core.errors import UserError
from qtool.core.validate_program import check_program
from qtool.export.validate.graph import check_graph
from qtool.export.validate.storage import check_storage


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
    _require_free_batch(path, model)
    try:
        dialect = import_qdq(model, allow_float)
        check_program(read_program(dialect))
        return dialect
    except UserError as error:
        raise type(error)(f"model {path}: {one_line(error)}") from None


def _require_free_batch(path: Path, model: ir.Model) -> None:
    shapes = [value.shape for value in model.graph.inputs]
    for shape in shapes:
        if shape is not None and len(shape) > 0 and isinstance(shape[0], int):
            raise UserError(
                f"model {path}: its batch is fixed at {shape[0]}; qtool import {path} -o "
                "OUT.onnx makes one of any batch"
            )


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
        join(proto, path.parent)
        check_storage(proto)
        onnx.checker.check_model(proto)
        for node in proto.graph.node:
            del node.metadata_props[:]  # what passes write there is theirs alone
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
