"""Float islands (`qtool.core.dialect.Island`) on codes: as ONNX Runtime and as numpy do it.

Floating point has no one right answer: orders of summation and approximations of exp differ
between libraries. An island's codes are therefore, by definition, those of ONNX Runtime: the
reference runs DQ -> operators -> Q in a session of its own, and everything else in numpy. So
parity proves all that is between islands to the last integer. How far ONNX Runtime's islands
are from an independent implementation, `onnx.reference` in numpy, is counted by itself.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qtool.core import numerics
from qtool.core.dialect import Grid, Island, Program
from runtimes.base import Codes
from runtimes.compare import Parity


def run_island(op: Island, inputs: Sequence[NDArray[Any]]) -> Codes:
    """Return the codes of `op` as ONNX Runtime computes them.

    Args:
        op: the island.
        inputs: uint8 codes, or float32 where `op.x` has no grid.
    """
    feeds = {f"q{index}": array for index, array in enumerate(inputs)}
    codes = _session(op).run(None, feeds)[0]
    clipped: Codes = np.clip(codes, np.uint8(op.lo), np.uint8(op.hi))
    return clipped


def run_numpy(op: Island, inputs: Sequence[NDArray[Any]]) -> Codes | None:
    """Return the codes of `op` as `onnx.reference` computes them; None where it cannot."""
    from onnx.reference import ReferenceEvaluator

    feeds = {
        f"x{index}": _dequantized(array, grid)
        for index, (array, grid) in enumerate(zip(inputs, op.x, strict=True))
    }
    try:
        results: Any = ReferenceEvaluator(onnx.load_from_string(op.body)).run(None, feeds)
    except NotImplementedError:
        return None
    values = np.asarray(results[0], np.float32)
    return numerics.quantize(values, op.grid.scale, op.grid.zero_point, op.lo, op.hi)


def _dequantized(array: NDArray[Any], grid: Grid | None) -> NDArray[Any]:
    return array if grid is None else numerics.dequantize(array, grid.scale, grid.zero_point)


@lru_cache(maxsize=64)
def _session(op: Island) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        _wrapped(op).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _wrapped(op: Island) -> onnx.ModelProto:
    """Return the island with its grids, as it is in the file: optimized alike."""
    model = onnx.load_from_string(op.body)
    nodes, graph = list(model.graph.node), model.graph
    del graph.node[:], graph.input[:], graph.output[:]
    for index, grid in enumerate(op.x):
        kind = TensorProto.FLOAT if grid is None else TensorProto.UINT8
        graph.input.append(helper.make_tensor_value_info(f"q{index}", kind, None))
        if grid is None:
            graph.node.append(helper.make_node("Identity", [f"q{index}"], [f"x{index}"]))
        else:
            names = [f"q{index}", *_grid(graph, f"x{index}", grid)]
            graph.node.append(helper.make_node("DequantizeLinear", names, [f"x{index}"]))
    graph.node.extend(nodes)
    names = ["y", *_grid(graph, "y", op.grid)]
    graph.node.append(helper.make_node("QuantizeLinear", names, ["codes"]))
    graph.output.append(helper.make_tensor_value_info("codes", TensorProto.UINT8, None))
    return model


def _grid(graph: onnx.GraphProto, name: str, grid: Grid) -> list[str]:
    pair = {f"{name}_s": np.float32(grid.scale), f"{name}_z": np.uint8(grid.zero_point)}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), key) for key, value in pair.items()
    )
    return list(pair)


def compare_islands(
    program: Program, x: NDArray[Any], tensors: Mapping[str, Codes]
) -> list[dict[str, Any]]:
    """Count how far ONNX Runtime's islands are from numpy's, each on the same inputs.

    Args:
        program: with islands.
        x: the model's input, (N, C, H, W).
        tensors: every integer tensor of `program` for `x`.

    Returns:
        For each island its name, operators, and `mismatched`, `compared`, `max_lsb`; nothing
        is compared where `onnx.reference` lacks an operator.
    """
    known = {program.input_name: x, **tensors}
    reports = []
    for op in program.islands():
        inputs = [known[name] for name in op.inputs]
        parity, expected = Parity(), run_numpy(op, inputs)
        if expected is not None:
            parity.add(op.output, expected, run_island(op, inputs))
        counts = {
            name: parity.to_json()[name] for name in ("mismatched", "compared", "max_lsb")
        }
        reports.append({"name": op.name, "operators": list(op.operators), **counts})
    return reports
