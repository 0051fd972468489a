"""Small foreign files, and whether importing them keeps their numbers."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from foreign_files import parse

from qtool.core.dialect import read_program
from qtool.export.foreign_import import read_foreign
from runtimes.reference import ReferenceRuntime

HEAD = """<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    g (float[1, 4, 8, 8] i) => (float[{out}] y)
    <float s = {{0.0213}}, float t = {{0.1307}}, uint8 z = {{128}}, float v = {{0.0031}},
     float[4] ws = {{0.0011, 0.0021, 0.0043, 0.0087}}, float[4] b = {{0.5, -0.5, 1, 0}},
     float[4] g = {{0.5, 1, -2, 1}}, float[4] m = {{0.1, 0, 0, 2}},
     float[4] u = {{1, 1, 2, 4}}>
    {{
        q = QuantizeLinear (i, s, z)
        x = DequantizeLinear (q, s, z)
        {body}
        cq = QuantizeLinear (c, t, z)
        y = DequantizeLinear (cq, t, z)
    }}"""
CONV = "wf = DequantizeLinear <axis = 0> (w, ws)\n c = Conv <pads = [1, 1, 1, 1]> (x, wf, b)\n"


def small(
    body: str, out: str = "1, 4, 8, 8", opset: int = 21, **arrays: np.ndarray
) -> onnx.ModelProto:
    """A file of `body`, which computes ``c`` of ``x``, with the constants that it reads."""
    model = parse(HEAD.format(body=body, out=out, opset=opset), **arrays)
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes, without fusing anything."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def differences(model: onnx.ModelProto, folder: Path) -> np.ndarray:
    """By how many steps of the output the imported file differs from the original."""
    path = folder / "foreign.onnx"
    onnx.save(model, path)
    program = read_program(read_foreign(path)[0])
    x = np.random.default_rng(0).uniform(-3, 4, (1, *program.input_shape))
    x = x.astype(np.float32)
    got, expected = ReferenceRuntime(program).run(x), run(model, x)
    return np.rint(np.abs(got.reshape(expected.shape) - expected) / program.output_grid.scale)


def assert_same(model: onnx.ModelProto, folder: Path) -> None:
    """A sum that falls between two codes may be rounded the other way than in float32."""
    found = differences(model, folder)
    assert found.max() <= 1 and (found > 0).mean() <= 0.01
