"""Two small ONNX files to damage: the QDQ form and the operator form of the dialect."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from passes.pipelines import import_qdq
from qtool.core.sealed import seal, unseal

QDQ = """
<ir_version: 10, opset_import: ["" : 21], metadata_props: ["qtool.bits": "{}"]>
tiny (float[N, 2, 5, 5] input) => (float[N, 3] output)
<
    float xs = {0.125}, uint8 xz = {128}, float ys = {0.0625}, uint8 yz = {0},
    float gs = {0.1}, uint8 gz = {3}, float us = {0.125}, uint8 uz = {9},
    float zs = {0.75}, uint8 zz = {100}, uint8 lo = {1}, uint8 hi = {200},
    int8[3, 2, 3, 3] w = {
        1, -2, 3, -4, 5, -6, 7, -8, 9, 1, -2, 3, -4, 5, -6, 7, -8, 9,
        11, -12, 13, -14, 15, -16, 17, -18, 19, 1, 2, 3, 4, 5, 6, 7, 8, 9,
        -1, -2, -3, -4, -5, -6, -7, -8, -9, 1, 2, 3, 4, 5, 6, 7, 8, 127
    },
    float[3] ws = {0.125, 0.25, 0.5}, int8[3] wz = {0, 0, 0},
    int32[3] b = {10, -20, 300}, float[3] bs = {0.015625, 0.03125, 0.0625},
    int8[3, 3] v = {1, 2, 3, -4, 5, 6, 7, -7, 0}, float[3] vs = {0.25, 0.5, 0.125},
    int32[3] c = {1, 2, 3}, float[3] cs = {0.03125, 0.0625, 0.015625}
>
{
    xq = QuantizeLinear (input, xs, xz)
    x = DequantizeLinear (xq, xs, xz)
    wf = DequantizeLinear <axis = 0> (w, ws, wz)
    bf = DequantizeLinear <axis = 0> (b, bs)
    y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, wf, bf)
    yw = QuantizeLinear (y, ys, yz)
    yq = Clip (yw, lo, hi)
    yf = DequantizeLinear (yq, ys, yz)
    m = MaxPool <kernel_shape = [2, 2]> (yq)
    mf = DequantizeLinear (m, ys, yz)
    s = Add (mf, mf)
    sq = QuantizeLinear (s, gs, gz)
    sf = DequantizeLinear (sq, gs, gz)
    l = LeakyRelu <alpha = 1.0> (sf)
    lq = QuantizeLinear (l, us, uz)
    lf = DequantizeLinear (lq, us, uz)
    p = GlobalAveragePool (lf)
    pq = QuantizeLinear (p, us, uz)
    f = Flatten <axis = 1> (pq)
    ff = DequantizeLinear (f, us, uz)
    vf = DequantizeLinear <axis = 0> (v, vs, wz)
    cf = DequantizeLinear <axis = 0> (c, cs)
    z = Gemm <transB = 1> (ff, vf, cf)
    zq = QuantizeLinear (z, zs, zz)
    output = DequantizeLinear (zq, zs, zz)
}
"""


def qdq():
    """A network of every operator that the QDQ form has."""
    return onnx.parser.parse_model(QDQ)


def qop():
    """The same network in operator form: QLinearConv, QGemm, com.microsoft's others."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(qdq()))
    return ir.to_proto(import_qdq(model))


def images(count: int) -> np.ndarray:
    """Inputs of the network, on its grid."""
    values = np.random.default_rng(count).integers(-128, 128, (count, 2, 5, 5))
    return (values * 0.125).astype(np.float32)


def resealed(source: Path, target: Path, **changes: Any) -> Path:
    """Copy a sealed library with other entries in its metadata, honestly sealed again."""
    library, facts = unseal(source.read_bytes(), "model")
    target.write_bytes(seal(library, facts | changes))
    return target
