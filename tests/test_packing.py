"""Packed weights: every bit-width, in the file and through ONNX Runtime, to the last code."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from conftest import graph
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from passes.importing.unpacking import unpack
from passes.packing.packing import (
    PLAIN_VERSIONS,
    holds,
    pack,
    required_versions,
    stored_bytes,
)
from qtool.core.errors import UnsupportedError
from qtool.core.weight_codes import container_shift, largest_code
from runtimes.ort import OrtRuntime

BITS = range(1, 9)
# Enough weights for every bit-width to be worth its nodes.
LARGE = (64, 32, 3, 3)


def draw(rng, bits, shape, odd=False):
    if odd or bits == 1:
        return (2 * rng.integers(0, 1 << bits, shape) - (1 << bits) + 1).astype(np.int8)
    half = 1 << (bits - 1)
    return rng.integers(-half, half, shape).astype(np.int8)


def packed(codes, bits, **options):
    """A model whose only output is the int8 tensor, as the bytes of its file."""
    packing = ir.Graph([], [], nodes=[], name="g")
    value = pack(packing, None, "w", codes, bits, **options)
    # A runtime wants outputs that are computed.
    node = ir.node("Identity", [value])
    packing.append(node)
    node.outputs[0].name = "y"
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    packing.outputs.append(node.outputs[0])
    opset, version = required_versions(packing)
    packing.opset_imports[""] = opset
    proto = ir.to_proto(ir.Model(packing, ir_version=version))
    del proto.graph.value_info[:]
    for item in proto.graph.node:  # as in the emitted file
        item.ClearField("name")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def reread(proto):
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    data = ir.to_proto(ir.from_proto(inferred)).SerializeToString()
    model = ir.from_proto(onnx.load_model_from_string(data))
    return unpack(model.graph.outputs[0].producer().inputs[0])


def session(proto, dump=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    data = proto.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def assert_exact(codes, bits, **options):
    proto = packed(codes, bits, **options)
    np.testing.assert_array_equal(reread(proto), codes, strict=True)
    np.testing.assert_array_equal(session(proto).run(None, {})[0], codes, strict=True)
    return proto


def kinds(proto):
    return {tensor.name: tensor.data_type for tensor in proto.graph.initializer}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("int2", [True, False])
def test_large_layers_take_exactly_their_bits(bits, int2):
    codes = draw(np.random.default_rng(bits), bits, LARGE)
    proto = assert_exact(codes, bits, int2=int2)
    tensor = next(t for t in proto.graph.initializer if t.name == "w")
    assert len(tensor.raw_data) == codes.size * bits / 8
    assert stored_bytes(codes, bits, int2=int2) == len(tensor.raw_data)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 8),
    shape=st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 70)),
        st.tuples(*[st.integers(1, n) for n in (40, 12, 5, 5)]),
    ),
    odd=st.booleans(),
    int2=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_codes_come_back(bits, shape, odd, int2, seed):
    codes = draw(np.random.default_rng(seed), bits, shape, odd and bits < 8)
    assert_exact(codes, bits, int2=int2)


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("shape", [(61, 167), (33, 41, 3, 3)])
def test_sizes_that_fill_no_nibble_are_cut(bits, shape):
    for odd in (False, True):
        codes = draw(np.random.default_rng(bits), bits, shape, odd)
        proto = assert_exact(codes, bits, int2=False)
        sliced = "Slice" in [node.op_type for node in proto.graph.node]
        assert sliced == (bits != 4 or odd)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [1, 16, 144, 600, 1000, 1500, 2304, 4608, 9216])
def test_no_other_form_would_make_a_smaller_file(bits, size):
    """Packing at more bits than needed reaches every simpler container."""
    codes = draw(np.random.default_rng(size), bits, (size, 1))
    chosen = len(packed(codes, bits).SerializeToString())
    first = bits + 1 if bits == 1 else bits
    others = [len(packed(codes, b).SerializeToString()) for b in range(first, 9)]
    assert chosen <= min(others) + 2  # lengths in the protobuf take a byte more or less


def test_tiny_layers_keep_the_simple_container():
    codes = draw(np.random.default_rng(0), 3, (16, 1, 3, 3))
    assert kinds(packed(codes, 3)) == {"w": TensorProto.INT4}
    assert kinds(packed(codes[:1], 3)) == {"w": TensorProto.INT8}
    assert kinds(packed(draw(np.random.default_rng(0), 1, (16, 1, 3, 3)), 1)) == {
        "w": TensorProto.INT2
    }


def test_versions_are_the_smallest_that_know_the_types():
    codes = draw(np.random.default_rng(0), 2, LARGE)
    new, old = packed(codes, 2), packed(codes, 2, int2=False)
    assert (new.opset_import[0].version, new.ir_version) == (25, 13)
    assert (old.opset_import[0].version, old.ir_version) == PLAIN_VERSIONS
    assert kinds(new)["w"] == TensorProto.INT2 and kinds(old)["w"] == TensorProto.UINT4


def test_layers_share_their_tables():
    shared_by = ir.Graph([], [], nodes=[], name="g")
    rng = np.random.default_rng(0)
    codes = [draw(rng, 3, LARGE) for _ in range(3)]
    values = [pack(shared_by, None, "w", item, 3) for item in codes]
    shared = {"qtool.bits", "qtool.bits_3", "qtool.shape_64x32x3x3"}
    assert set(shared_by.initializers) == shared | {"w", "w_1", "w_2"}
    for value, item in zip(values, codes, strict=True):
        np.testing.assert_array_equal(unpack(value), item, strict=True)


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        ([-5, 4], 3, "conv: codes -5 to 4 do not fit 3 bits"),
        ([-1, 0, 1], 1, "conv: codes -1 to 1 do not fit 1 bits"),
        ([9, 1], 3, "conv: codes 0 to 9 do not fit 3 bits"),
    ],
)
def test_codes_beyond_their_bits_are_refused(codes, bits, message):
    with pytest.raises(UnsupportedError, match=message):
        pack(ir.Graph([], [], nodes=[]), None, "conv", np.array(codes, np.int8), bits)


def damaged(change, shape=LARGE):
    proto = packed(draw(np.random.default_rng(1), 3, shape), 3)
    change(
        {n.op_type: n for n in proto.graph.node}, {t.name: t for t in proto.graph.initializer}
    )
    return unpack(ir.from_proto(proto).graph.outputs[0].producer().inputs[0])


def swap(name, array):
    return lambda _, tensors: tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, name))


@pytest.mark.parametrize(
    "change",
    [
        lambda nodes, _: nodes["MatMulInteger"].input.append("qtool.bits"),
        lambda nodes, _: nodes["Gather"].attribute.pop(),
        lambda nodes, _: setattr(nodes["MatMulInteger"], "op_type", "MatMul"),
        lambda nodes, _: setattr(nodes["Cast"].attribute[0], "i", TensorProto.UINT8),
        swap("qtool.bits", np.zeros((4, 16), np.int8)),
        swap("qtool.bits_3", np.array([[1], [2], [4]], np.int8)),
        swap("qtool.bits_3", np.array([[1], [2], [-4]], np.int32)),
        swap("qtool.shape_64x32x3x3", np.array([64, 32, 3, 4])),
        swap("qtool.shape_64x32x3x3", np.array([1 << 40, 1 << 40, 1 << 40, 3])),
        swap("qtool.shape_64x32x3x3", np.array([64, 32, 3, -1])),
        swap("w", np.zeros((4608, 3), np.uint8)),
    ],
)  # fmt: skip
def test_chains_that_decode_otherwise_are_not_read(change):
    assert damaged(change) is None


def test_slices_that_cut_otherwise_are_not_read():
    assert damaged(lambda *_: None, (61, 167)) is not None
    assert damaged(swap("qtool.int_0", np.array([1])), (61, 167)) is None
    assert damaged(swap("qtool.int_10187", np.array([10186])), (61, 167)) is None
    cut = lambda nodes, _: nodes["Slice"].input.append("qtool.int_0")  # noqa: E731
    assert damaged(cut, (61, 167)) is None


def test_other_constants_are_read_or_refused():
    for kind, known in ((TensorProto.INT4, True), (TensorProto.UINT4, False)):
        tensor = onnx.helper.make_tensor("w", kind, [3], [1, 2, 3])
        value = ir.Value(name="w", const_value=ir.from_proto(tensor))
        codes = unpack(value)
        assert (codes is not None and codes.tolist() == [1, 2, 3]) == known
    assert unpack(None) is None
    assert unpack(ir.Value(name="x", type=ir.TensorType(ir.DataType.INT8))) is None


def convolution(codes, bits):
    """Convolution in QDQ form whose weight is packed, as the bytes of its file."""
    channels, inputs = codes.shape[:2]
    scales = ", ".join(["0.01"] * channels)
    zeros = ", ".join(["0"] * channels)
    model = graph(
        f"""<ir_version: 10, opset_import: ["" : 21]> g
        (float[N, {inputs}, 8, 8] x, int8[{", ".join(map(str, codes.shape))}] w8)
        => (float[N, {channels}, 6, 6] y)
        <float xs = {{0.02}}, uint8 xz = {{128}}, float ys = {{0.05}}, uint8 yz = {{100}},
         float[{channels}] ws = {{{scales}}}, int8[{channels}] wz = {{{zeros}}}> {{
        q = QuantizeLinear(x, xs, xz)  d = DequantizeLinear(q, xs, xz)
        w = DequantizeLinear<axis=0>(w8, ws, wz)  c = Conv(d, w)
        r = QuantizeLinear(c, ys, yz)  y = DequantizeLinear(r, ys, yz) }}"""
    )
    placeholder = model.graph.inputs.pop()
    value = pack(model.graph, next(iter(model.graph)), "codes", codes, bits)
    ir.convenience.replace_all_uses_with(placeholder, value)
    opset, model.ir_version = required_versions(model.graph)
    model.opset_imports[""] = opset
    return ir.to_proto(model)


@pytest.mark.parametrize("bits", BITS)
def test_nothing_is_unpacked_at_run_time(bits, tmp_path):
    codes = draw(np.random.default_rng(bits), bits, LARGE)
    optimized = []
    for container in (bits, 8):
        dump = tmp_path / f"{container}.onnx"
        path = tmp_path / "model.onnx"
        onnx.save(convolution(codes, container), path)
        runtime = OrtRuntime(path)
        assert not runtime.float_ops()
        session(onnx.load(path), dump)
        x = np.random.default_rng(0).normal(size=(1, 32, 8, 8)).astype(np.float32)
        kernels = [node.op_type for node in onnx.load(dump).graph.node]
        optimized.append((kernels, runtime.run(x)))
    (packed_kernels, y), (plain_kernels, expected) = optimized
    assert packed_kernels == plain_kernels and packed_kernels.count("QLinearConv") == 1
    np.testing.assert_array_equal(y, expected, strict=True)
    assert len(np.unique(y)) > 10


@pytest.mark.parametrize(
    ("scheme", "bits", "shift"),
    [("symmetric", 2, 6), ("symmetric", 4, 3), ("symmetric", 7, 0), ("symmetric", 8, 0),
     ("modified", 2, 5), ("modified", 7, 0), ("centered", 1, 6), ("dorefa", 2, 4),
     ("dorefa", 6, 0), ("dorefa", 7, 0)],
)  # fmt: skip
def test_codes_fill_their_container_up_to_64(scheme: str, bits: int, shift: int) -> None:
    assert container_shift(scheme, bits) == shift
    assert largest_code(scheme, bits) << shift <= 64 or shift == 0


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("shape", [(6, 1), LARGE])
def test_codes_times_a_power_of_two_take_their_own_bits(
    bits: int, odd: bool, shape: tuple[int, ...]
) -> None:
    narrow = draw(np.random.default_rng(bits), bits, shape, odd)
    for shift in range(8 - bits - (odd and bits > 1)):
        codes = (narrow << shift).astype(np.int8)
        assert np.array_equal(codes >> shift, narrow) and holds(codes, bits)
        assert stored_bytes(codes, bits) <= stored_bytes(narrow, bits) or codes.size < 10
        for int2 in (True, False):
            assert_exact(codes, bits, int2=int2)
