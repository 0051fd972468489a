"""Files of other tools -> the integer dialect -> an artifact: ``qtool import``.

ONNX in QDQ or QLinear form, as ONNX Runtime's ``quantize_static``, NNCF, Brevitas (QCDQ) and
AIMET write it. Every tensor keeps the grid that its tool chose; what cannot be computed on
integers is refused, naming layer and operator.
"""

from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

import qtool
from passes.emit.base import Inspect, Note, Target
from passes.emit.facts import VERSION_KEY
from passes.emit.onnx.target import OnnxTarget
from passes.pipelines import expand_foreign, import_foreign
from qtool.core.dialect import BITS_KEY, MS, read_program
from qtool.core.errors import UserError
from qtool.core.validate_program import check_program
from qtool.export.read import load_graph, one_line, read_dialect
from qtool.export.validate.operators import check_contrib

Range = tuple[float, float]


@dataclass(frozen=True)
class ImportOptions:
    """What `import_file` makes of a foreign file.

    Args:
        target: what is written, with its own options.
        output_range: smallest and largest value of an output that stayed float.
        allow_float: keep what has no integer form as marked float islands.
    """

    target: Target = field(default_factory=OnnxTarget)
    output_range: Range | None = None
    allow_float: bool = False


def import_file(
    path: Path,
    options: ImportOptions,
    output: Path | None,
    force: bool,
    note: Note | None = None,
    inspect: Inspect | None = None,
) -> list[str]:
    """Write the foreign model `path` as an artifact of qtool.

    Args:
        path: the model.
        options: what becomes of it.
        output: the artifact; None where the target writes another file.
        force: existing files may be replaced.
        note: is told what is going on.
        inspect: is given what will be written, before it is; its `UserError` refuses it.

    Returns:
        A sentence for each change of what the model computes.

    Raises:
        UserError: missing or damaged, or not a model of integers; says where and why.
    """
    options.target.check(output, force)
    dialect, notes = read_foreign(path, options.output_range, options.allow_float)
    if inspect is not None:
        inspect(dialect)
    options.target.write(dialect, output, note)
    return notes


def read_foreign(
    path: Path, output_range: Range | None = None, allow_float: bool = False
) -> tuple[ir.Model, list[str]]:
    """Return a foreign ONNX file in the integer dialect, and notes as of `import_file`.

    A file that qtool wrote is read back as it was: layers keep their names and bits.
    """
    if output_range is None and BITS_KEY in _metadata(path):
        return read_dialect(path, allow_float), []
    model, notes = load_graph(path, _expand), list[str]()
    ends = len(model.graph.inputs), len(model.graph.outputs)
    if ends != (1, 1):
        raise UserError(
            f"model {path}: {ends[0]} inputs and {ends[1]} outputs; one of each is supported"
        )
    try:
        dialect = import_foreign(model, output_range, notes, allow_float)
        check_program(read_program(dialect))
    except UserError as error:
        raise type(error)(f"model {path}: {one_line(error)}") from None
    dialect.metadata_props[VERSION_KEY] = qtool.__version__
    return dialect, notes


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file; none of one that cannot be read."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception:  # whatever it is, reading the graph says it
        return {}
    return {prop.key: prop.value for prop in proto.metadata_props}


def _expand(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in standard operators, its batch free."""
    for node in proto.graph.node:
        # The same operators; ONNX Runtime's domain once had more types.
        if node.domain == MS and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = ""
    if proto.functions:
        raise UserError("model-local functions; inline them first (onnx.inliner)")
    check_contrib(proto)
    del proto.graph.value_info[:]
    expanded: onnx.ModelProto = ir.to_proto(expand_foreign(ir.from_proto(proto)))
    return expanded


def parse_range(text: str) -> Range:
    """Return ``LO,HI`` as two floats around 0.

    Raises:
        UserError: not two numbers, or 0 is not among the values.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"range {text!r}: expected LO,HI, such as -12.5,20") from None
    if not (low <= 0 <= high and 1e-6 < high - low < 1e30):
        raise UserError(f"range {text!r}: LO must be at most 0, HI at least 0, and not both 0")
    return low, high
