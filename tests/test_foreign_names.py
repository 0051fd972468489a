"""A user's tensors and nodes may be called anything, also what qtool calls its own."""

from pathlib import Path

import foreign_files
import numpy as np
import onnx
import onnxruntime
import pytest
from foreign_check import CONV, small
from foreign_files import codes

from passes.emit.onnx.onnx_file import FORMS, write_onnx
from qtool.core.dialect import read_program
from qtool.export.foreign_import import read_foreign
from qtool.export.read import read_onnx
from runtimes.reference import ReferenceRuntime

# Everything that makes names of ours: layers, BatchNorm, clips, a table, a pad, a split, a
# reshape, a hard sigmoid's constant, a pool, packed weights.
EVERYTHING = """d = Conv <pads = [1, 1, 1, 1]> (x, wf, b)
    n = BatchNormalization (d, g, b, m, u)
    r = Relu (n)
    rq = QuantizeLinear (r, t, z)
    rf = DequantizeLinear (rq, t, z)
    h = HardSigmoid <alpha = 0.16666667> (rf)
    hq = QuantizeLinear (h, v, o)
    hf = DequantizeLinear (hq, v, o)
    k = Mul (rf, hf)
    kq = QuantizeLinear (k, t, z)
    kf = DequantizeLinear (kq, t, z)
    p = Pad (kf, sides)
    p1, p2 = Split <axis = 1, num_outputs = 2> (p)
    j = Concat <axis = 1> (p2, p1)
    a = Tanh (j)
    aq = QuantizeLinear (a, v, z)
    af = DequantizeLinear (aq, v, z)
    e = ReduceMean <keepdims = 0> (af, axes)
    eq = QuantizeLinear (e, v, z)
    ef = DequantizeLinear (eq, v, z)
    f = Reshape (ef, flat)
    vf = DequantizeLinear <axis = 1> (k4, ws)
    c0 = MatMul (f, vf)
    c = Add (c0, b)"""


def everything() -> onnx.ModelProto:
    return small(
        "wf = DequantizeLinear <axis = 0> (w, ws)\n" + EVERYTHING, "1, 4",
        w=codes(0, 4, 4, 3, 3, top=7), k4=codes(1, 4, 4, top=7), o=np.asarray(np.uint8(0)),
        sides=np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64), flat=np.array([1, 4], np.int64),
        axes=np.array([2, 3], np.int64),
    )  # fmt: skip


MODELS = {
    "everything": everything,
    "nncf": foreign_files.nncf,
    "brevitas": lambda: foreign_files.brevitas(4),
    "aimet": foreign_files.aimet,
}


def tensors(model: onnx.ModelProto) -> list[str]:
    """Names of all tensors but the input and the output, in order."""
    graph = model.graph
    made = [tensor.name for tensor in graph.initializer]
    made += [name for node in graph.node for name in node.output]
    ends = {value.name for value in (*graph.input[:1], *graph.output)}
    return [name for name in dict.fromkeys(made) if name and name not in ends]


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """A copy whose tensors are called by `names`, and whose nodes after their results."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.name = node.output[0]
    for value in (*copy.graph.initializer, *copy.graph.input):
        value.name = names.get(value.name, value.name)
    return copy


def written(model: onnx.ModelProto, folder: Path, form: str) -> tuple[Path, np.ndarray]:
    """The imported file, and what the reference computes with it; ONNX Runtime does too."""
    source, target = folder / "foreign.onnx", folder / f"{form}.onnx"
    onnx.save(model, source)
    dialect, _ = read_foreign(source)
    write_onnx(dialect, target, form)
    program = read_program(dialect)
    x = np.random.default_rng(0).normal(size=(2, *program.input_shape)).astype(np.float32)
    result = ReferenceRuntime(read_onnx(target)).run(x)
    session = onnxruntime.InferenceSession(target.read_bytes())
    got = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.testing.assert_array_equal(got, result)
    return target, result


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_names_of_ours_are_the_users_too(name: str, form: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    _, expected = written(model, tmp_path, form)
    ours: list[str] = []
    # What each of both forms calls its tensors, and what it does where those are taken.
    for other in FORMS:
        path, _ = written(model, tmp_path, other)
        ours += [n for n in tensors(onnx.load(path)) if n not in ours]
    theirs = tensors(model)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        drawn = rng.permutation(ours)[: len(theirs)].tolist()
        drawn += [f"theirs_{n}" for n in range(len(theirs) - len(drawn))]
        names = dict(zip(theirs, drawn, strict=True))
        path, got = written(renamed(model, names), tmp_path, form)
        np.testing.assert_array_equal(got, expected)
        ours += [n for n in tensors(onnx.load(path)) if n not in ours]


# Patterns of all names that passes make from those of others.
SUFFIXES = (
    "/wide", "/codes", "/clip", "/y", "/f", "/input", "/value", "/real", ".w", ".b", ".bias",
    ".weight", ".weight_scale", ".bias_scale", ".folded_scale", ".folded_codes", ".scales",
    ".folded_bias", ".sizes", ".shape", ".start", ".end", ".axis", "/piece", "/pooled",
    "/index", ".table", "/int8", ".w4", "_1", "_2",
)  # fmt: skip
FIXED = (
    "s0", "s1", "s2", "s3", "z0", "z100", "z128", "u0", "u255", "zeros4", "three4", "output",
    "output.scale", "output.zero_point", "qtool.bits", "qtool.signs", "val_0", "val_1",
    "output/quantize", "qtool.int_0", "qtool.shape_4x4x3x3", "qtool.bits_4",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_names_derived_from_the_users_are_the_users_too(form: str, tmp_path: Path) -> None:
    model = everything()
    _, expected = written(model, tmp_path, form)
    theirs = tensors(model)
    candidates = [
        *FIXED,
        *(f"{stem}{end}" for stem in ("c", "d", "i", "r") for end in SUFFIXES),
    ]
    for seed in range(12):
        rng = np.random.default_rng(seed)
        drawn = rng.permutation(candidates)[: len(theirs) - 4].tolist()
        kept = rng.permutation(["c", "d", "r", "n"]).tolist()
        names = dict(zip(theirs, rng.permutation([*drawn, *kept]).tolist(), strict=True))
        _, got = written(renamed(model, names), tmp_path, form)
        np.testing.assert_array_equal(got, expected)


def test_a_layer_keeps_its_name_where_ours_is_the_same(tmp_path: Path) -> None:
    model = small(CONV, w=codes(0, 4, 4, 3, 3))
    path, _ = written(renamed(model, {"c": "s3"}), tmp_path, "qdq")
    assert [cost.name for cost in read_onnx(path).layer_costs()] == ["s3"]
    assert {"s3", "s3_1"} <= set(tensors(onnx.load(path)))
