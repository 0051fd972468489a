"""Builds nodes of the integer dialect; what lowering and importing have in common.

A `Quantized` is a uint8 tensor with its grid. Every builder method makes one operator, and a
Clip behind it where the window is narrower than the container. The graph stays as it is until
`IntegerBuilder.commit`: a model that is refused half-way is left untouched.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.graph import forget_names, make_constant, numbered
from qtool.core.dialect import MS, Grid
from qtool.core.grids import FULL, Window


@dataclass(frozen=True)
class Quantized:
    """A uint8 tensor and the grid of its codes; `bits` is its width as an activation.

    All its codes are known to lie in `window`.
    """

    value: ir.Value
    grid: Grid
    bits: int
    window: Window = FULL


class IntegerBuilder:
    """Makes dialect nodes and constants, sharing equal ones."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}
        self._shared: dict[tuple[str, bytes], ir.Value] = {}
        self._names: Counter[str] = Counter()

    def reserve(self, model: ir.Model) -> None:
        """Keep the names of the model's inputs and outputs for these."""
        self._names.update(str(v.name) for v in (*model.graph.inputs, *model.graph.outputs))

    def commit(self, model: ir.Model, outputs: list[ir.Value]) -> None:
        """Replace the graph of `model` by what was built; `outputs` are its outputs."""
        graph, old = model.graph, list(model.graph)
        ends = (*model.graph.inputs, *outputs)
        results = {value.name for node in self.nodes for value in node.outputs}
        self._part(results | {value.name for value in ends})
        graph.extend(self.nodes)
        graph.outputs[:] = outputs
        graph.remove(old[::-1], safe=True)
        graph.initializers.clear()
        for value in self.constants.values():
            graph.register_initializer(value)
        forget_names(graph)
        model.opset_imports[MS] = 1

    def _part(self, results: set[str | None]) -> None:
        """Rename constants that are called like a result, which may have the user's name."""
        taken = results | set(self.constants)
        for name in [name for name in self.constants if name in results]:
            value = self.constants.pop(name)
            value.name = numbered(name, taken.__contains__)
            self.constants[value.name] = value
            taken.add(value.name)

    def add(self, array: Any, name: str) -> ir.Value:
        """Return a new initializer `name`, or a numbered variant if the name is taken."""
        fresh = numbered(name, self.constants.__contains__)
        self.constants[fresh] = make_constant(fresh, np.asarray(array))
        return self.constants[fresh]

    def constant(self, array: Any, name: str) -> ir.Value:
        """Return an initializer with this content, the same one for the same content."""
        array = np.asarray(array)
        key = (f"{array.dtype}{array.shape}", array.tobytes())
        if key not in self._shared:
            self._shared[key] = self.add(array, name)
        return self._shared[key]

    def grid(self, grid: Grid) -> tuple[ir.Value, ir.Value]:
        """Return scale and zero point as constants."""
        scale = self.constant(np.float32(grid.scale), f"s{len(self._shared)}")
        return scale, self.constant(np.uint8(grid.zero_point), f"z{grid.zero_point}")

    def emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        like: ir.Value,
        window: Window = FULL,
        domain: str = "",
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        """Make the operator and its clip; the result is `name`, shaped like `like`."""
        name = self.unique(name)
        node = ir.node(op_type, inputs, attributes or {}, domain=domain, name=name)
        self.nodes.append(node)
        own = name if window.full else self.unique(f"{name}/wide")
        result = _describe(node.outputs[0], own, like)
        if window.full:
            return result
        bounds = [self.constant(np.uint8(b), f"u{b}") for b in (window.lo, window.hi)]
        clip = ir.node("Clip", [result, *bounds], name=f"{name}/clip")
        self.nodes.append(clip)
        return _describe(clip.outputs[0], name, like)

    def unique(self, name: str) -> str:
        """Return `name`, numbered if a tensor has it already."""
        self._names[name] += 1
        count = self._names[name]
        return name if count == 1 else self.unique(f"{name}_{count}")

    def quantize(self, x: ir.Value, grid: Grid, window: Window, name: str) -> ir.Value:
        """QuantizeLinear of the float input."""
        return self.emit("QuantizeLinear", [x, *self.grid(grid)], name, x, window)

    def dequantize(self, x: Quantized, like: ir.Value) -> ir.Value:
        """DequantizeLinear to the float output."""
        node = ir.node("DequantizeLinear", [x.value, *self.grid(x.grid)], name="output")
        self.nodes.append(node)
        result = node.outputs[0]
        result.name, result.shape, result.type = like.name, like.shape, like.type
        return result


def _describe(value: ir.Value, name: str, like: ir.Value) -> ir.Value:
    value.name, value.shape = name, like.shape
    value.type = ir.TensorType(ir.DataType.UINT8)
    return value
