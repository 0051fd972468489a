"""What a float operator and its inputs are at the moment it becomes an integer one."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from passes.lower.integer_builder import IntegerBuilder, Quantized
from qtool.core.dialect import Grid
from qtool.core.grids import Window


@dataclass(frozen=True)
class Site:
    """A float operator about to become an integer one.

    Args:
        node: the operator.
        inputs: its activations.
        grid, window, name: of its result.
        like: its float result, for the shape.
    """

    node: ir.Node
    inputs: tuple[Quantized, ...]
    grid: Grid
    window: Window
    name: str
    like: ir.Value


Operator = Callable[[IntegerBuilder, Site], ir.Value]
