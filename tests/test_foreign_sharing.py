"""What several nodes of a foreign file read is changed for one of them alone."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from foreign_check import assert_same, small
from foreign_files import codes, scales
from onnx import helper, numpy_helper

from passes.importing.own_weights import OwnWeights
from qtool.core.dialect import read_program
from qtool.export.foreign_import import read_foreign

W = "wf = DequantizeLinear <axis = 0> (w, ws)\n"
FIRST = "d = Conv <pads = [1, 1, 1, 1]> (x, wf, b)\n"
NORM = "n = BatchNormalization (d, g, b, m, u)\n"
GRID = "aq = QuantizeLinear (n, t, z)\n a = DequantizeLinear (aq, t, z)\n"
SECOND = "c = Conv <pads = [1, 1, 1, 1]> (a, wf, b)"
SUM = "eq = QuantizeLinear (e, t, z)\n ef = DequantizeLinear (eq, t, z)\n c = Add (a, ef)"
TURN = "wh = DequantizeLinear <axis = 3> (w, ws)\n wf = Transpose <perm = [3, 2, 0, 1]> (wh)\n"
UNIT = np.float32(0.01)
CASES: dict[str, tuple[str, str, dict[str, np.ndarray]]] = {
    "a weight, BatchNorm behind one": (W + FIRST + NORM + GRID + SECOND, "", {}),
    "a weight, BatchNorm behind both": (
        W + FIRST + NORM + GRID + SECOND.replace("c =", "e =")
        + "\n c = BatchNormalization (e, g, b, m, u)", "", {},
    ),
    "a turned weight": (
        TURN + FIRST + NORM + GRID + SECOND, "", {"w": codes(0, 3, 3, 4, 4)},
    ),
    "codes on two scales": (
        W + "wg = DequantizeLinear <axis = 0> (w, ws2)\n" + FIRST + NORM + GRID
        + SECOND.replace("wf", "wg"), "", {"ws2": scales(1, 4)},
    ),
    "uint8 codes": (
        "wf = DequantizeLinear (w, v, z)\n" + FIRST + NORM + GRID + SECOND, "",
        {"w": codes(0, 4, 4, 3, 3).view(np.uint8)},
    ),
    "a bias": (
        W + "bf = DequantizeLinear (bq, unit)\n" + FIRST.replace("b)", "bf)") + NORM + GRID
        + SECOND.replace("b)", "bf)"), "",
        {"bq": np.array([113, -47, 8, 31], np.int32), "unit": np.asarray(UNIT)},
    ),
    "weight scales that are a BatchNorm's gamma": (
        W + FIRST + NORM.replace("g, b", "ws, b") + GRID + SECOND, "", {},
    ),
    "a pair of Q and DQ": (
        W + FIRST + NORM + GRID + SECOND.replace("c =", "e =") + "\n" + SUM, "", {},
    ),
    "a BatchNorm's result": (
        W + FIRST + NORM + "e = Relu (n)\n" + GRID + SUM, "", {},
    ),
    "a convolution's result, on two grids": (
        W + FIRST.replace("d =", "n =") + "e = Relu (n)\n" + GRID + SUM, "", {},
    ),
    "a weight of both layouts": (
        "f = Flatten (x)\n kf = DequantizeLinear <axis = 0> (k, ws)\n kt = Transpose (kf)\n"
        "n = Gemm <transB = 1> (f, kf)\n e = MatMul (f, kt)\n" + GRID + SUM, "1, 4",
        {"k": codes(0, 4, 256, top=20)},
    ),
    "codes, moved": (
        W + FIRST.replace("d =", "n =") + GRID
        + "p = Transpose <perm = [0, 1, 3, 2]> (aq)\n ef = DequantizeLinear (p, s, z)\n"
        + "c = Add (a, ef)", "", {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_reader_of_its_own(case: str, tmp_path: Path) -> None:
    body, out, arrays = CASES[case]
    arrays = {"w": codes(0, 4, 4, 3, 3)} | arrays
    assert_same(small(body, out or "1, 4, 8, 8", **arrays), tmp_path)


def test_a_constant_node_with_two_readers(tmp_path: Path) -> None:
    model = small(W + FIRST + NORM + GRID + SECOND)
    value = numpy_helper.from_array(codes(0, 4, 4, 3, 3))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=value))
    assert_same(model, tmp_path)


def test_every_layer_has_its_name(tmp_path: Path) -> None:
    model = small(W + FIRST + NORM + GRID + SECOND, w=codes(0, 4, 4, 3, 3))
    onnx.save(model, tmp_path / "foreign.onnx")
    program = read_program(read_foreign(tmp_path / "foreign.onnx")[0])
    assert [cost.name for cost in program.layer_costs()] == ["d", "c"]


def test_own_weights_twice_changes_nothing_more() -> None:
    model = ir.from_proto(
        onnx.shape_inference.infer_shapes(
            small(TURN + FIRST + NORM + GRID + SECOND, w=codes(0, 3, 3, 4, 4))
        )
    )
    assert OwnWeights()(model).modified and not OwnWeights()(model).modified
