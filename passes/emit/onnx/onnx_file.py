"""Integer dialect -> ONNX file, in QDQ or operator form."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from passes.emit.facts import FILE_KEYS
from passes.emit.onnx.onnx_qdq import emit_onnx_qdq
from passes.emit.onnx.onnx_qop import emit_onnx_qop
from passes.packing.nesting import Nested
from qtool.core.files import write_bytes

FORMS = {"qdq": emit_onnx_qdq, "qop": emit_onnx_qop}


def write_onnx(dialect: ir.Model, path: Path, form: str = "qdq") -> None:
    """Write `dialect` as an ONNX file in QDQ or operator form (`FORMS`)."""
    write_bytes(path, file_model(dialect, form).SerializeToString())


def file_model(
    dialect: ir.Model, form: str, shared: Mapping[str, Nested] | None = None
) -> onnx.ModelProto:
    """Return what a file of `dialect` holds.

    Args:
        dialect: result of `passes.pipelines.lower`.
        form: a key of `FORMS`.
        shared: how weights are held that several files share, by layer.
    """
    metadata = {k: v for k, v in dialect.metadata_props.items() if k in FILE_KEYS}
    proto = compact(FORMS[form](dialect, metadata, shared))
    # Shape inference does not know the contrib operators of the operator form.
    onnx.checker.check_model(proto, full_check=form == "qdq")
    return proto


def compact(model: ir.Model) -> onnx.ModelProto:
    """Return `model` without what its initializers say again."""
    proto: onnx.ModelProto = ir.to_proto(model)
    stored = {tensor.name for tensor in proto.graph.initializer}
    kept = [info for info in proto.graph.value_info if info.name not in stored]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    del proto.graph.metadata_props[:]
    return proto
