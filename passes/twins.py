"""Which integer tensor stands for which tensor of the graph that was lowered or imported.

A note in the model's ``meta``, which no file holds: whoever compares an artifact with where it
comes from (`qtool.witness`) learns here which tensors to compare.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from passes.lower.integer_builder import Quantized
from qtool.core.dialect import Grid, value_name

_KEY, _QUANTIZER, _OUTPUT = "qtool.twins", "qtool.quantizer", "qtool.output"
# Of a network: role and name of a quantizer. Of a file: "values" or "codes", and the tensor.
Key = tuple[str, str]


@dataclass(frozen=True)
class Twin:
    """An integer tensor and the grid that its readers take its codes on."""

    tensor: str
    grid: Grid


def note_quantizer(value: ir.Value, role: str, name: str) -> None:
    """Note that `value` is the result of a quantizer, which moved before what makes it."""
    value.meta[_QUANTIZER] = (role, name)


def quantizer_of(value: ir.Value) -> Key | None:
    """Return role and name of the quantizer whose result `value` is, by `note_quantizer`."""
    found: Key | None = value.meta.get(_QUANTIZER)
    return found


def note_output(graph: ir.Graph, name: str) -> None:
    """Note that the file's tensor `name` is the output now: what came behind is left out."""
    graph.meta[_OUTPUT] = name


def output_of(model: ir.Model) -> str | None:
    """Return the file's tensor that is the output, None where that is the file's own."""
    found: str | None = model.graph.meta.get(_OUTPUT)
    return found


def note_twins(model: ir.Model, found: Iterable[tuple[str, str, Quantized]]) -> None:
    """Note in `model` the twin of each (kind, name): a `Key`."""
    model.meta[_KEY] = {
        (kind, name): Twin(value_name(twin.value), twin.grid) for kind, name, twin in found
    }


def twins_of(model: ir.Model) -> Mapping[Key, Twin]:
    """Return what lowering or importing `model` has noted; nothing of a file's graph."""
    noted: Mapping[Key, Twin] = model.meta.get(_KEY, {})
    return noted
