"""The integer dialect as typed operators: what passes emit and runtimes execute.

On disk and between passes the dialect is an `onnx_ir.Model` of standard operators
(QuantizeLinear, QLinearConv, com.microsoft QLinearAdd, ...; see README, "The integer
dialect"). `read_program` turns such a graph into a list of typed operators (`Op`), each with
its constants as numpy arrays and with the b-bit clip that follows it folded into its output
window.
"""

from qtool.core.dialect.attributes import is_plain, require_plain
from qtool.core.dialect.nodes import (
    ACTIVATION_BITS_KEY,
    BITS_KEY,
    ISLAND_KEY,
    ISLANDS_KEY,
    MS,
    WEIGHT_BITS_KEY,
    constant,
    ints,
    label,
    scalar,
    static_shape,
    value_name,
)
from qtool.core.dialect.ops import (
    Add,
    Average,
    Concat,
    Conv,
    FloatGemm,
    Gemm,
    Grid,
    Island,
    Lookup,
    MaxPool,
    Mul,
    Op,
    Pad,
    Program,
    Quantize,
    Reshape,
    Slice,
    Transpose,
    Upsample,
    weight_of,
)
from qtool.core.dialect.reader import NODE_TYPES, read_program, require_ends

__all__ = [
    "ACTIVATION_BITS_KEY", "BITS_KEY", "ISLANDS_KEY", "ISLAND_KEY", "MS", "NODE_TYPES",
    "WEIGHT_BITS_KEY", "Add", "Average", "Concat", "Conv", "FloatGemm", "Gemm", "Grid",
    "Island", "Lookup", "MaxPool", "Mul", "Op", "Pad", "Program", "Quantize", "Reshape",
    "Slice", "Transpose", "Upsample", "constant", "ints", "is_plain", "label", "read_program",
    "require_ends", "require_plain", "scalar", "static_shape", "value_name", "weight_of",
]  # fmt: skip
