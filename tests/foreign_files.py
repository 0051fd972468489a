"""Small ONNX files as other tools write them: the structure of real exports, few numbers.

NNCF 3.4 (ONNX backend), Brevitas 0.13 (QCDQ export), AIMET 2.42 (`to_onnx_qdq`): operators,
their order, types and attributes are those that these tools' exports of a small network had.
Scales are no round numbers: between those ties abound, which floats and integers round apart.
"""

import numpy as np
import onnx
from onnx import numpy_helper

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def parse(text: str, **arrays: np.ndarray) -> onnx.ModelProto:
    """The model of ONNX text syntax, with `arrays` as initializers."""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    return model


def codes(seed: int, *shape: int, top: int = 127) -> np.ndarray:
    return np.random.default_rng(seed).integers(-top, top + 1, shape).astype(np.int8)


def floats(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scales(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.002, 0.004, count).astype(np.float32)


def nncf() -> onnx.ModelProto:
    """int8 input, uint8 behind Relu, float biases, pool without a grid, float logits."""
    text = f"""{HEADER}
    nncf (float[1, 3, 8, 8] input) => (float[1, 10] logits)
    <float s0 = {{0.03}}, int8 z0 = {{-3}}, float s1 = {{0.02}}, uint8 u = {{0}},
     float s2 = {{0.025}}, float s3 = {{0.04}}, float s4 = {{0.01}}, int8 z4 = {{-128}},
     int8[4] wz = {{0, 0, 0, 0}}, int8[10] vz = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}>
    {{
        xq = QuantizeLinear (input, s0, z0)
        x = DequantizeLinear (xq, s0, z0)
        wf = DequantizeLinear <axis = 0> (w, ws, wz)
        c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, wf, b)
        r = Relu (c)
        rq = QuantizeLinear (r, s1, u)
        rf = DequantizeLinear (rq, s1, u)
        w2f = DequantizeLinear <axis = 0> (w2, ws2, wz)
        d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 4> (rf, w2f, b2)
        e = Relu (d)
        eq = QuantizeLinear (e, s2, u)
        ef = DequantizeLinear (eq, s2, u)
        a = Add (rf, ef)
        aq = QuantizeLinear (a, s3, u)
        af = DequantizeLinear (aq, s3, u)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (af)
        g = GlobalAveragePool (p)
        gq = QuantizeLinear (g, s4, z4)
        gf = DequantizeLinear (gq, s4, z4)
        f = Flatten <axis = 1> (gf)
        vf = DequantizeLinear <axis = -2> (v, vs, vz)
        logits = Gemm <transB = 1> (f, vf, vb)
    }}"""
    return parse(
        text, w=codes(0, 4, 3, 3, 3), ws=scales(1, 4), b=floats(2, 4), w2=codes(3, 4, 1, 3, 3),
        ws2=scales(4, 4), b2=floats(5, 4), v=codes(6, 10, 4), vs=scales(7, 10),
        vb=floats(8, 10),
    )  # fmt: skip


def brevitas(width: int) -> onnx.ModelProto:
    """Clips on codes, BatchNorm behind the first layer, int32 biases, parameters as inputs."""
    top = 2 ** (width - 1) - 1
    clip = f"<int8 lo = {{{-top}}}, int8 hi = {{{top}}}, uint8 ulo = {{0}}, "
    clip += f"uint8 uhi = {{{2**width - 1}}},"
    unit = np.float32(np.float32(0.4013) * np.float32(0.0507))
    text = f"""<ir_version: 7, opset_import: ["" : 13]>
    brevitas (float[1, 3, 8, 8] input, float[4] gamma, float[4] beta) => (float[1, 5] logits)
    {clip} float s0 = {{0.0313}}, int8 z = {{0}}, float s1 = {{0.2971}}, uint8 u = {{0}},
     float s2 = {{0.4013}}, float ws = {{0.0507}}, int32 iz = {{0}},
     float[4] mean = {{0, 1, -1, 0}},     float[4] var = {{1, 4, 1, 0.25}},
     float[4] gamma = {{1, -0.5, 2, 1}},
     float[4] beta = {{0.5, 1, -0.25, 0}}, int32[5] vb = {{10, -20, 30, 40, -5}}>
    {{
        xq = QuantizeLinear (input, s0, z)
        x = DequantizeLinear (xq, s0, z)
        wc = Clip (w, lo, hi)
        wf = DequantizeLinear (wc, ws, z)
        c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, wf)
        n = BatchNormalization <epsilon = 0.00001, momentum = 0.9> (c, gamma, beta, mean, var)
        r = Relu (n)
        rw = QuantizeLinear (r, s1, u)
        rq = Clip (rw, ulo, uhi)
        rf = DequantizeLinear (rq, s1, u)
        w2c = Clip (w2, lo, hi)
        w2f = DequantizeLinear (w2c, ws, z)
        d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (rf, w2f)
        e = Relu (d)
        ew = QuantizeLinear (e, s2, u)
        eq = Clip (ew, ulo, uhi)
        ef = DequantizeLinear (eq, s2, u)
        p = MaxPool <kernel_shape = [4, 4], strides = [4, 4]> (ef)
        f = Flatten <axis = 1> (p)
        vc = Clip (v, lo, hi)
        vf = DequantizeLinear (vc, ws, z)
        vbf = DequantizeLinear (vb, unit, iz)
        logits = Gemm <transB = 1> (f, vf, vbf)
    }}"""
    return parse(
        text, w=codes(0, 4, 3, 3, 3, top=top), w2=codes(1, 4, 4, 3, 3, top=top),
        v=codes(2, 5, 16, top=top), unit=np.asarray(unit),
    )  # fmt: skip


def aimet() -> onnx.ModelProto:
    """Float weights with Q and DQ behind them, a grid on every tensor, Concat of two grids."""
    text = f"""{HEADER}
    aimet (float[1, 3, 8, 8] input) => (float[1, 10] logits)
    <float s0 = {{0.03}}, uint8 z0 = {{125}}, float s1 = {{0.04}}, uint8 z1 = {{120}},
     float s2 = {{0.02}}, uint8 u = {{0}}, float s3 = {{0.025}}, uint8 z3 = {{15}},
     float s4 = {{0.03}}, uint8 z4 = {{12}}, float s5 = {{0.015}}, float s6 = {{0.05}},
     uint8 z6 = {{128}}, int8[4] wz = {{0, 0, 0, 0}},
     int8[10] vz = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}>
    {{
        wq = QuantizeLinear <axis = 0> (w, ws, wz)
        wf = DequantizeLinear <axis = 0> (wq, ws, wz)
        xq = QuantizeLinear (input, s0, z0)
        x = DequantizeLinear (xq, s0, z0)
        c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, wf, b)
        cq = QuantizeLinear (c, s1, z1)
        cf = DequantizeLinear (cq, s1, z1)
        r = Relu (cf)
        rq = QuantizeLinear (r, s2, u)
        rf = DequantizeLinear (rq, s2, u)
        h = HardSwish (cf)
        hq = QuantizeLinear (h, s3, z3)
        hf = DequantizeLinear (hq, s3, z3)
        k = Concat <axis = 1> (hf, rf)
        kq = QuantizeLinear (k, s4, z4)
        kf = DequantizeLinear (kq, s4, z4)
        g = GlobalAveragePool (kf)
        gq = QuantizeLinear (g, s5, u)
        gf = DequantizeLinear (gq, s5, u)
        f = Flatten <axis = 1> (gf)
        fq = QuantizeLinear (f, s5, u)
        ff = DequantizeLinear (fq, s5, u)
        vq = QuantizeLinear <axis = 0> (v, vs, vz)
        vf = DequantizeLinear <axis = 0> (vq, vs, vz)
        y = Gemm <transB = 1> (ff, vf, vb)
        yq = QuantizeLinear (y, s6, z6)
        logits = DequantizeLinear (yq, s6, z6)
    }}"""
    return parse(
        text, w=floats(0, 4, 3, 3, 3) / 8, ws=scales(1, 4), b=floats(2, 4),
        v=floats(3, 10, 8) / 4, vs=scales(4, 10), vb=floats(5, 10),
    )  # fmt: skip


def layer(tail: str, head: str = "", out: str = "4", **arrays: np.ndarray) -> onnx.ModelProto:
    """An input grid ``x`` (N, 2, 4, 4), constants and `tail`, which computes ``y``."""
    text = f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (float[N, 2, 4, 4] input) => (float[N, {out}] y)
    <float s = {{0.05}}, uint8 z = {{100}}, float t = {{0.1}}, int8 i = {{0}},
     uint8 u3 = {{3}}, float[3] ws = {{0.01, 0.02, 0.03}}{head}>
    {{
        xq = QuantizeLinear (input, s, z)
        x = DequantizeLinear (xq, s, z)
        {tail}
    }}"""
    return parse(text, **arrays)
