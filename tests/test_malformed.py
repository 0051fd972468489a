"""A damaged ONNX file is one clear line, never a crash, a hang or a wrong answer.

What is still read in spite of a mutation must be answered as ONNX Runtime answers it.
"""

import resource
import subprocess
import sys
import time

import mutations
import numpy as np
import onnx
import pytest
from conftest import run_qtool
from onnx import numpy_helper
from operators import F32, session
from tiny_files import qdq, qop

from qtool.core.errors import UserError
from qtool.export.read import read_onnx
from runtimes.reference import ReferenceRuntime

SEEDS = {"qdq": qdq(), "qop": qop()}
SECONDS = 5
forms = pytest.mark.parametrize("form", SEEDS)


def copy_of(form):
    model = onnx.ModelProto()
    model.CopyFrom(SEEDS[form])
    return model


def read(data, path):
    """Return the program, or the refusal as one line; anything else is a failure."""
    path.write_bytes(data)
    start = time.perf_counter()
    try:
        result = read_onnx(path)
    except UserError as error:
        result = str(error)
        assert result.startswith(f"model {path}") and "\n" not in result, result
    assert time.perf_counter() - start < SECONDS
    return result


def images(shape, batch):
    return np.random.default_rng(0).normal(0, 6, (batch, *shape)).astype(F32)


def agrees(program, data):
    """Whether ONNX Runtime refuses the file, or answers as the reference does."""
    try:
        runtime = session(onnx.ModelProto.FromString(data))
        source = runtime.get_inputs()[0]
        batch = source.shape[0] if isinstance(source.shape[0], int) else 2
        x = images(program.input_shape, batch)
        expected = runtime.run(None, {source.name: x})[0]
    except Exception:  # its exception types have no public base
        ReferenceRuntime(program).run(images(program.input_shape, 2))
        return True
    return np.array_equal(ReferenceRuntime(program).run(x), expected)


def survives(data, path):
    """Read a damaged file; return whether it was refused."""
    result = read(data, path)
    if isinstance(result, str):
        return True
    assert agrees(result, data), "read, and answered unlike ONNX Runtime"
    return False


@forms
def test_the_undamaged_files_are_read_and_answered_alike(form, tmp_path):
    data = SEEDS[form].SerializeToString()
    program = read(data, tmp_path / "m.onnx")
    x = images(program.input_shape, 3)
    runtime = session(SEEDS[form])
    expected = runtime.run(None, {runtime.get_inputs()[0].name: x})[0]
    assert len(program.ops) == 8 and len(np.unique(expected)) > 4
    np.testing.assert_array_equal(ReferenceRuntime(program).run(x), expected, strict=True)


@forms
def test_every_truncation_is_refused(form, tmp_path):
    data = SEEDS[form].SerializeToString()
    tail = max(data.rfind(b"qtool.bits") - 8, len(data) - 60)
    for length in [*range(0, tail, 11), *range(64)]:
        assert survives(data[:length], tmp_path / "m.onnx"), f"{length} bytes"
    for length in range(tail, len(data)):  # metadata may go missing, the graph stays
        survives(data[:length], tmp_path / "m.onnx")


@forms
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes(form, seed, tmp_path):
    rng = np.random.default_rng(seed)
    original = np.frombuffer(SEEDS[form].SerializeToString(), np.uint8)
    refused = 0
    for _ in range(150):
        data = original.copy()
        where = rng.integers(len(data), size=int(rng.integers(1, 4)))
        data[where] ^= rng.integers(1, 256, where.size).astype(np.uint8)
        refused += survives(data.tobytes(), tmp_path / "m.onnx")
    assert refused > 50


# Mutations after which a file may still be a valid one, in every draw.
HARMLESS = {"drop_attribute", "bad_metadata"}


@forms
@pytest.mark.parametrize("mutate", mutations.MUTATIONS, ids=lambda f: f.__name__)
def test_mutated_protobufs(form, mutate, tmp_path):
    rng = np.random.default_rng(len(mutate.__name__))
    refused = 0
    for _ in range(12):
        model = copy_of(form)
        mutate(model, rng)
        refused += survives(model.SerializeToString(), tmp_path / "m.onnx")
    assert refused or mutate.__name__ in HARMLESS


# One by one, and what the line says


def set_array(name, array):
    def damage(model):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))

    return damage


def node_named(model, output):
    return next(node for node in model.graph.node if output in node.output)


def set_input(output, position, name):
    def damage(model):
        node_named(model, output).input[position] = name

    return damage


def set_dimension(index, value):
    def damage(model):
        model.graph.input[0].type.tensor_type.shape.dim[index].dim_value = value

    return damage


def set_opset(version):
    def damage(model):
        model.opset_import[0].version = version

    return damage


def set_domain(model):
    node_named(model, "y").domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def store_outside(model):
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    tensor.ClearField("int32_data")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def repeat_output(model):
    node_named(model, "y").output[0] = "x"


def forget_weight(model):
    kept = [t for t in model.graph.initializer if t.name != "w"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def mistype_attribute(model):
    attribute = next(a for a in node_named(model, "y").attribute if a.name == "pads")
    attribute.CopyFrom(onnx.helper.make_attribute("pads", "SAME"))


def drop_inputs(op_type, kept):
    def damage(model):
        node = next(n for n in model.graph.node if n.op_type == op_type)
        del node.input[kept:]

    return damage


REFUSALS = {
    "zero scale": (set_array("ys", F32(0)), "scale ys is not finite and positive"),
    "negative scale": (set_array("ws", np.array([1, -1, 1], F32)), "scale ws is not finite"),
    "NaN scale": (set_array("xs", F32(np.nan)), "node xq (QuantizeLinear): scale xs is not"),
    "infinite scale": (set_array("gs", F32(np.inf)), "scale gs is not finite and positive"),
    "float64 scale": (set_array("ys", np.float64(1)), "tensor ys is tensor(double)"),
    "zero point's type": (set_array("wz", np.zeros(3, np.uint8)), "beside tensor(int8"),
    "zero points' number": (set_array("wz", np.zeros(2, np.int8)), "but zero points of"),
    "scales' number": (set_array("ws", np.ones(2, F32)), "2 scales for 3 channels"),
    "block scales": (set_array("ws", np.ones((3, 2, 1, 1), F32)), "4 dimensions"),
    "weight's rank": (set_array("w", np.ones((3, 18), np.int8)), "weight of shape (3, 18)"),
    "weight's channels": (set_array("w", np.ones((3, 4, 3, 3), np.int8)), "weight for 4"),
    "weight's type": (set_array("w", np.ones((3, 2, 3, 3), np.uint8)), "uint8"),
    "one clip bound": (drop_inputs("Clip", 2), "(Clip): input 2 is missing"),
    "bias's length": (set_array("b", np.ones(2, np.int32)), "scales for 2 channels"),
    "bias's rank": (set_array("c", np.ones((3, 1, 1), np.int32)), "bias of shape (3, 1, 1)"),
    "bias's type": (set_array("b", np.ones(3, np.float32)), "tensor b is tensor(float)"),
    "cycle": (set_input("x", 0, "yq"), "topological"),
    "missing input": (set_input("s", 0, "nowhere"), "nowhere"),
    "missing initializer": (forget_weight, "input 'w'"),
    "duplicated output": (repeat_output, "'x'"),
    "mistyped attribute": (mistype_attribute, "pads"),
    "huge dimension": (set_dimension(2, 2**40), "at most 2^28"),
    "huge batch": (set_dimension(0, 2**40), "at most 2^28"),
    "huge product": (set_dimension(2, 2**27), "at most 2^28"),
    "negative dimension": (set_dimension(3, -5), "negative dimension"),
    "empty dimension": (set_dimension(0, 0), "empty"),
    "unknown opset": (set_opset(99), "opset 99; one of 13 to"),
    "old opset": (set_opset(9), "opset 9; one of 13 to"),
    "unknown domain": (set_domain, "unknown operator domain 'com.example'"),
    "other file": (store_outside, "tensor w is stored in another file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_the_refusal_names_the_damage(case, tmp_path):
    damage, words = REFUSALS[case]
    model = copy_of("qdq")
    damage(model)
    result = read(model.SerializeToString(), tmp_path / "m.onnx")
    assert isinstance(result, str) and words in result, result


def gemm_attribute(name, value):
    def damage(model):
        node = next(n for n in model.graph.node if n.op_type == "QGemm")
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(onnx.helper.make_attribute(name, value))

    return damage


CONTRIB = {
    "scaled": (gemm_attribute("alpha", 1.5), "Gemm with alpha 1.5; 1.0 is supported"),
    "mistyped": (gemm_attribute("alpha", 1), "alpha is unknown or mistyped"),
    "invented": (gemm_attribute("bogus", 1), "bogus is unknown or mistyped"),
    "no zero point": (drop_inputs("QLinearLeakyRelu", 4), "4 inputs; it takes 5 to 5"),
    "few inputs": (drop_inputs("QLinearAdd", 3), "3 inputs; it takes 7 to 8"),
    "weights' zero point": (
        set_array("zeros3", np.int8([0, 0, 1])),
        "weights with zero point 0, 1",
    ),
}


@pytest.mark.parametrize("case", CONTRIB)
def test_operators_without_a_schema_are_checked_too(case, tmp_path):
    damage, words = CONTRIB[case]
    model = copy_of("qop")
    damage(model)
    result = read(model.SerializeToString(), tmp_path / "m.onnx")
    assert isinstance(result, str) and words in result, result


def test_check_exits_2_with_one_line_and_no_output(tmp_path):
    model = copy_of("qdq")
    set_dimension(2, 2**40)(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    result = run_qtool("check", path)
    assert result.code == 2 and result.out == "", result.out
    lines = result.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("qtool: error: model "), result.err
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


READ = """
import sys
from pathlib import Path
from qtool.core.errors import UserError
from qtool.export.read import read_onnx
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_onnx(path)
    except UserError:
        print("refused")
"""


def test_promises_of_much_data_take_neither_memory_nor_time(tmp_path):
    """Files that name terabytes are refused by a process that may not have four gigabytes."""
    rng, hostile = np.random.default_rng(0), (mutations.huge_initializer, mutations.empty_data)
    for index in range(24):
        model = copy_of("qdq")
        hostile[index % 2](model, rng)
        (tmp_path / f"{index}.onnx").write_bytes(model.SerializeToString())
    for index, (position, size) in enumerate([(0, 2**40), (2, 2**62), (3, 2**31 - 1)]):
        model = copy_of("qdq")
        set_dimension(position, size)(model)
        (tmp_path / f"shape{index}.onnx").write_bytes(model.SerializeToString())
    limit = 4 * 2**30

    def confine():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", READ, tmp_path], capture_output=True, text=True,
        timeout=60, preexec_fn=confine,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * 27
