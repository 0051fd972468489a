"""Relay text from programs: what is written, and why it is exact, without TVM."""

import re
import struct

import numpy as np
import pytest
from programs import BITS, Net, everything

from passes.emit.relay.emit import EXACT, QNN, emit
from passes.emit.relay.operators import OPERATORS
from passes.emit.relay.parameters import parameter_bytes
from passes.emit.relay.text import TensorType, Text, attribute, identifier, number, tuple_of
from qtool.core import numerics
from qtool.core.dialect import Add, Grid, Mul

F32 = np.float32

LAYER = """#[version = "0.0.5"]
def @main(%x: Tensor[(1, 2, 4, 4), uint8], %layer0_weight: Tensor[(3, 2, 3, 3), int8], \
%layer0_bias: Tensor[(3, 1, 1), int32], %layer0_factor: Tensor[(3, 1, 1), float32], \
%output_scale: Tensor[(1), float32]) -> Tensor[(1, 3, 2, 4), float32] {
  // layer0: Conv
  %0 = cast(%layer0_weight, dtype="int16");
  %1 = cast(%x, dtype="int16");
  %2 = subtract(%1, 7i16);
  %3 = nn.conv2d(%2, %0, strides=[2, 1], padding=[1, 1, 1, 1], dilation=[1, 1], groups=1, \
channels=3, kernel_size=[3, 3], out_dtype="int32");
  %4 = add(%3, %layer0_bias);
  %5 = cast(%4, dtype="float32");
  %6 = multiply(%5, %layer0_factor);
  %7 = clip(%6, a_min=-5f, a_max=250f);
  %8 = add(%7, 1e+07f);
  %9 = reinterpret(%8, dtype="int32");
  %10 = subtract(%9, 1259902587);
  %11 = cast(%10, dtype="uint8");
  // y: floats
  %12 = cast(%11, dtype="int32");
  %13 = subtract(%12, 5);
  %14 = cast(%13, dtype="float32");
  %15 = multiply(%14, %output_scale);
  %15
}
"""


def test_a_layer_as_text() -> None:
    net = Net((2, 4, 4))
    net.conv("x", 3, x=Grid(F32(0.5), 7), grid=Grid(F32(0.1), 5), strides=(2, 1), bits=BITS)
    made = emit(net.program())
    assert made.main == LAYER
    shapes = {name: value.shape for name, value in made.parameters.items()}
    assert shapes == {
        "layer0_weight": (3, 2, 3, 3), "layer0_bias": (3, 1, 1), "layer0_factor": (3, 1, 1),
        "output_scale": (1,),
    }  # fmt: skip
    traced = made.trace.splitlines()
    assert traced[-2] == "  (%11,)"
    assert traced[1].endswith("-> (Tensor[(1, 3, 2, 4), uint8],) {")
    assert traced[2:-2] == LAYER.splitlines()[2:15]


def test_all_that_is_traced_is_in_order() -> None:
    program = everything()
    made = emit(program, batch=3)
    first, *_ = re.findall(r"-> \((.*)\) \{", made.trace)
    shapes = program.shapes()
    kinds = [str(TensorType((3, *shapes[name]), "uint8")) for name in program.tensors()]
    assert first == ", ".join(kinds) and len(kinds) == len(program.ops) - 1
    assert made.main.count("\n") < made.trace.count("\n") + 2


def test_no_scalar_is_open_to_rewriting() -> None:
    """Scales are vectors in the exact form; literals are whole numbers."""
    made = emit(everything())
    assert all(value.ndim for value in made.parameters.values())
    literals = re.findall(r"[ =](-?[\d.e+]+)f\b", made.main)
    assert literals and all(float(text).is_integer() for text in literals)
    scalars = [v for v in emit(everything(), QNN).parameters.values() if not v.ndim]
    assert scalars and all(v.dtype == np.float32 for v in scalars)


def test_rounding_is_half_to_even_by_the_bits_of_a_sum() -> None:
    """What the text does with a float, done by numpy."""
    ties = np.arange(-513, 513, dtype=F32) / 2
    near = np.concatenate([ties, np.nextafter(ties, F32(999)), np.nextafter(ties, F32(-999))])
    bits = (near + F32(1e7)).view(np.int32) - 1259902592
    assert np.array_equal(bits, np.rint(near))


def test_the_qnn_form_has_qnn_operators() -> None:
    made = emit(everything(), QNN)
    found = set(re.findall(r"qnn\.\w+", made.main + made.trace))
    assert found == {
        "qnn.quantize", "qnn.conv2d", "qnn.dense", "qnn.requantize", "qnn.add", "qnn.mul",
    }  # fmt: skip
    net = Net((2, 4, 4))
    net.conv("x", 3)
    text = emit(net.program(), QNN).main
    assert 'rounding="TONEAREST", compute_dtype="float32"' in text
    assert "qnn.dequantize(" in text and "qnn" not in emit(everything()).main


# Sums


def double_rounding() -> Add:
    """3 * rb is half a step of float32 below 3.5; of 1e-25 less float64 keeps nothing."""
    rb = F32(9786709 / 2**23)
    return Add(
        "sum", "t", ("a", "b"), Grid(F32(1), 0), 0, 255, (4,), a=Grid(F32(1e-25), 1),
        b=Grid(rb, 0),
    )  # fmt: skip


def spelled(op: Add | Mul) -> Text:
    text = Text("x", TensorType((1, 4), "uint8"), {"a": (4,), "b": (4,)})
    assert OPERATORS[type(op)](op, text, ["%x", "%x"]).startswith("%")
    return text


def test_a_sum_that_float64_rounds_twice_is_a_table() -> None:
    op = double_rounding()
    answers = spelled(op).parameters["sum_answers"].reshape(256, 256)
    assert answers[0, 3] == 3  # and 4 in float64
    codes = np.arange(256, dtype=np.uint8)
    for a in (0, 1, 200):
        expected = numerics.add(
            np.full(256, a, np.uint8), op.a.scale, 1, codes, op.b.scale, 0, F32(1), 0
        )
        assert np.array_equal(answers[a], expected)


def test_other_sums_are_multiplied_and_added() -> None:
    net = Net((2, 4, 4))
    net.add("x", "x")
    text = emit(net.program())
    assert {str(v.dtype) for v in text.parameters.values()} == {"float32", "float64"}
    assert "take(" not in text.main and text.main.count('dtype="float64"') == 3


# Words


def test_names() -> None:
    assert identifier("features.2.conv/0") == "features_2_conv_0"
    assert identifier("0.weight") == "v_0_weight" and identifier("äé") == "v"
    text = Text("x", TensorType((1, 4), "uint8"), {})
    value = np.zeros(1, F32)
    names = [text.parameter(owner, "s", value) for owner in ("a.b", "a_b", "a/b")]
    assert names == ["%a_b_s", "%a_b_s_2", "%a_b_s_3"]
    taken = Text("x_s", TensorType((1, 4), "uint8"), {})
    assert taken.parameter("x", "s", value) == "%x_s_2"
    text.note("two\nlines */ }")
    assert "  // two lines */ }\n" in text.function("%x", "()")


def test_numbers_and_attributes() -> None:
    assert (number(-5), number(1e7), number(255)) == ("-5f", "1e+07f", "255f")
    with pytest.raises(ValueError, match="more digits than Relay prints"):
        number(1 / 3)
    values = ("a", 2.0, (1, (2, 3)), True, None)
    assert [*map(attribute, values)] == ['"a"', "2f", "[1, [2, 3]]", "True", "None"]
    kind = TensorType((), "float32")
    assert tuple_of(["%1"], [kind]) == ("(%1,)", "(float32,)")
    assert tuple_of(["%1", "%2"], [kind, kind]) == ("(%1, %2)", "(float32, float32)")


def test_parameters_as_tvm_stores_them() -> None:
    data = parameter_bytes({"w": np.array([[1, -2]], np.int8), "s": np.array([0.5], ">f8")})
    expected = b"".join(
        (
            struct.pack("<QQ", 0xF7E58D4F05049CB7, 0),
            struct.pack("<QQ1sQ1sQ", 2, 1, b"w", 1, b"s", 2),
            struct.pack("<QQiiiBBHqqq", 0xDD5E40F096B4A13F, 0, 1, 0, 2, 0, 8, 1, 1, 2, 2),
            b"\x01\xfe",
            struct.pack("<QQiiiBBHqq", 0xDD5E40F096B4A13F, 0, 1, 0, 1, 2, 64, 1, 1, 8),
            struct.pack("<d", 0.5),
        )
    )
    assert data == expected
    assert EXACT.operators.keys() == QNN.operators.keys()
