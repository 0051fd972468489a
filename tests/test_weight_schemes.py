"""Weight codes of the published quantizers: exact, or refused where int8 has no room."""

from fractions import Fraction

import numpy as np
import onnx_ir as ir
import pytest
from conftest import graph
from onnx_ir.passes import PassError
from test_passes import HEADER, reason

from passes.adaptive.freeze_weights import FreezeWeights
from passes.importing.unpacking import unpack
from passes.packing.packing import pack
from qtool.core import weight_codes
from qtool.core.dialect import constant
from qtool.core.errors import UnsupportedError

GRID = np.linspace(-1, 1, 4001).astype(np.float32)


def frozen(
    scheme: str, bits: int, step: float, values: np.ndarray = GRID
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scale of a weight with `values`, by default all over [-1, 1].

    The node holds codes times a power of two; here they are divided by it.
    """
    nodes = (
        f'w = qtool.FakeQuant<name="fc", role="weight", bits=[{bits}], signed=1, '
        f'scheme="{scheme}">(k, s)\n y = MatMul(x, w)'
    )
    model = graph(
        f"{HEADER} g (float[N, 4] x) => (float[N, 1] y) "
        f"<float[1, 1] s = {{{step}}}, float[4, 1] k = {{0, 0, 0, 0}}> {{ {nodes} }}"
    )
    weight = model.graph.initializers["k"]
    weight.const_value = ir.tensor(np.tile(values[:, None], (1, 1)), name="k")
    FreezeWeights()(model)
    node = next(n for n in model.graph if n.op_type == "DequantizeLinear")
    codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
    assert codes is not None and scale is not None and codes.dtype == np.int8
    times = 1 << weight_codes.container_shift(scheme, bits)
    assert not np.any(codes % times)
    return codes[:, 0].astype(np.int64) // times, scale * times


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_dorefa_codes_are_its_levels(bits: int) -> None:
    n = (1 << bits) - 1
    codes, scale = frozen("dorefa", bits, 1 / n)
    half = (GRID.astype(np.float64) + 1) / 2
    away_from_ties = np.abs(half * n % 1 - 0.5) > 1e-4
    expected = 2 * np.rint(half * n) / n - 1
    assert np.abs(codes * float(scale[0]) - expected)[away_from_ties].max() < 1e-6
    assert np.all(codes % 2 == 1) and len(np.unique(codes)) == n + 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_modified_codes_are_signed_integers_of_their_width(bits: int) -> None:
    codes, scale = frozen("modified", bits, 2.0 ** (1 - bits))
    cells = np.minimum(np.floor(2**bits * (GRID.astype(np.float64) + 1) / 2), 2**bits - 1)
    inner = np.abs(2**bits * (GRID + 1) / 2 % 1) > 1e-4
    assert np.array_equal((codes * float(scale[0]))[inner], (2 * cells / 2**bits - 1)[inner])
    assert codes.min() == -(1 << (bits - 1)) and codes.max() == (1 << (bits - 1)) - 1


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_centered_codes_lie_in_the_middle_of_the_modified_cells(bits: int) -> None:
    modified, _ = frozen("modified", bits, 2.0 ** (1 - bits))
    centered, scale = frozen("centered", bits, 2.0**-bits)
    assert np.array_equal(centered * float(scale[0]), (modified + 0.5) * 2.0 ** (1 - bits))
    assert centered.min() == -centered.max() == 1 - (1 << bits)


def test_double_rounding_rounds_stored_codes_once_more() -> None:
    stored = np.arange(-127, 128)
    for bits in range(1, 9):
        codes = weight_codes.double_rounding_weight(stored.astype(np.float32), bits)
        top = max(2 ** (bits - 1) - 1, 1)
        # Python rounds halves of fractions to even.
        exact = [round(Fraction(int(code), 2 ** (8 - bits))) for code in stored]
        wanted = np.clip(exact, -top, top) if bits > 1 else np.where(stored >= 0, 1, -1)
        assert codes.dtype == np.int8 and np.array_equal(codes, wanted)
        if bits > 1:  # BatchNorm may flip a channel before or after
            assert np.array_equal(codes[::-1], -codes)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_double_rounding_freezes_to_its_codes(bits: int) -> None:
    codes, scale = frozen("double_rounding", bits, 0.01 * 2 ** (8 - bits), stored_codes())
    expected = weight_codes.double_rounding_weight(stored_codes(), bits)
    assert np.array_equal(codes, expected) and scale[0] == np.float32(0.01 * 2 ** (8 - bits))


def stored_codes() -> np.ndarray:
    return np.arange(-127, 128).astype(np.float32)


def test_8_bit_dorefa_is_refused() -> None:
    with pytest.raises((UnsupportedError, PassError)) as error:
        frozen("dorefa", 8, 1 / 255)
    assert "layer fc: 8-bit DoReFa weights are odd integers up to 255" in reason(error)


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises((UnsupportedError, PassError)) as error:
        frozen("other", 4, 0.1)
    assert "layer fc: unknown weight scheme 'other'" in reason(error)


@pytest.mark.parametrize("bits", range(1, 8))
def test_odd_codes_are_packed_in_their_own_bits(bits: int) -> None:
    codes = weight_codes.dorefa_weight(GRID[:4000], bits).astype(np.int8).reshape(50, 80)
    packed = ir.Graph([], [], nodes=[])
    assert np.array_equal(unpack(pack(packed, None, "w", codes, bits)), codes)
