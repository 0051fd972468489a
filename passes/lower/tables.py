"""Functions of one tensor: 256 answers.

1. Change of grid, LeakyRelu: QLinearLeakyRelu, which makes its table when the file is loaded.
2. Sigmoid, Swish, HardSwish, Tanh: ``Gather(table, Cast(codes))``. The answers are qtool's, so
   every runtime gives the same ones.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.lower.integer_builder import IntegerBuilder, Quantized
from passes.lower.site import Site
from qtool.core import numerics
from qtool.core.dialect import MS, Grid
from qtool.core.grids import Window


def leaky(
    build: IntegerBuilder,
    x: Quantized,
    like: ir.Value,
    grid: Grid,
    window: Window,
    name: str,
    alpha: float = 1.0,
) -> ir.Value:
    """QLinearLeakyRelu; with alpha 1 a change of grid."""
    inputs = [x.value, *build.grid(x.grid), *build.grid(grid)]
    return build.emit("QLinearLeakyRelu", inputs, name, like, window, MS, {"alpha": alpha})


def leaky_relu(build: IntegerBuilder, site: Site) -> ir.Value:
    """QLinearLeakyRelu with the node's alpha."""
    alpha = site.node.attributes.get_float("alpha", 0.01)
    return leaky(build, site.inputs[0], site.like, site.grid, site.window, site.name, alpha)


def tabulate(build: IntegerBuilder, site: Site, function: numerics.Function) -> ir.Value:
    """Cast and Gather of the answers that `function` has on the site's grids."""
    x, y, window = site.inputs[0], site.grid, site.window
    answers = numerics.lookup_table(
        function, x.grid.scale, x.grid.zero_point, y.scale, y.zero_point, window.lo, window.hi
    )
    return gather(build, site.name, x.value, answers, site.like)


def gather(
    build: IntegerBuilder, name: str, x: ir.Value, answers: Any, like: ir.Value
) -> ir.Value:
    """``answers[x]``."""
    index = build.emit("Cast", [x], f"{name}/index", like, attributes={"to": 6})
    index.type = ir.TensorType(ir.DataType.INT32)
    return build.emit("Gather", [build.add(answers, f"{name}.table"), index], name, like)


FUNCTIONS: dict[str, numerics.Function] = {
    "Sigmoid": numerics.sigmoid,
    "Swish": numerics.silu,
    "HardSwish": lambda x: x * numerics.hard_sigmoid(x),
    "Tanh": np.tanh,
}


def tabulated(build: IntegerBuilder, site: Site) -> ir.Value:
    """One of `FUNCTIONS`."""
    return tabulate(build, site, FUNCTIONS[site.node.op_type])
