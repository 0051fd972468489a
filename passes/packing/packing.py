"""Weight codes -> ``INT2/INT4 -> Cast`` or bit planes, whichever makes the smaller file.

int8 codes of b bits take b bits each in the file. The nodes that widen them to int8 read
constants only, so runtimes fold them at load and execute nothing more:

1. ``INT8``                                    8 bits a weight, no node.
2. ``Cast(INT4)``, ``Cast(INT2)``              4 or 2 bits. INT2 needs opset 25.
   ``Gather(T, Cast(INT4))``                   of codes times a power of two.
3. ``Reshape(Cast(MatMulInteger(Gather(T, Cast(P)), place)))``     b bits, for any b < 8,
   see `passes.packing.bit_planes`. ``Slice(Reshape(.))`` drops what pads the last nibbles.

Codes that b bits do not hold, but would if divided by a power of two that they have in common
(`qtool.core.weight_codes.container_shift`), are stored divided: T and `place` multiply again.

A form's nodes, names and tables count too: small layers keep the simpler container.
ONNX Runtime folds all three. OpenVINO cannot read INT2, and would execute the plainer spelling
of 3 (BitShift, BitwiseAnd) at every inference.
Refuses codes that b bits cannot hold. `passes.importing.unpacking` is the inverse.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph import add_constant
from passes.packing.bit_planes import TABLES, Codes, place_values, plane_bytes, to_planes
from qtool.core.dialect import Program, constant, weight_of
from qtool.core.errors import UnsupportedError
from qtool.core.weight_codes import narrowed

Form = Callable[["Site", Codes], ir.Value]
# (opset, IR version) that a file needs: 21 is the first opset with INT4, 25 with INT2.
PLAIN_VERSIONS, INT2_VERSIONS = (21, 10), (25, 13)
_CONTAINERS = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8}


def pack(
    graph: ir.Graph,
    before: ir.Node | None,
    name: str,
    codes: Codes,
    bits: int,
    *,
    int2: bool = True,
) -> ir.Value:
    """Add `codes` to `graph` in the form that takes the fewest bytes.

    Args:
        graph: gets the initializers and nodes.
        before: node that the new nodes precede; None appends them.
        name: name of the initializer with the codes, numbered if it is taken.
        codes: int8 of any shape: two's complement of `bits` bits, or all odd in
            [1 - 2^bits, 2^bits - 1], or a power of two times such.
        bits: 1 to 8.
        int2: whether INT2 may be used; `required_versions` says what that costs.

    Returns:
        The int8 tensor, in the shape of `codes`.

    Raises:
        UnsupportedError: codes that `bits` bits do not hold.
    """
    _, form = _choose(codes, bits, name, int2)
    value = form(Site(graph, before, name), codes)
    value.type, value.shape = ir.TensorType(ir.DataType.INT8), ir.Shape(codes.shape)
    return value


def holds(codes: Codes, bits: int) -> bool:
    """True when `bits` bits hold the codes, divided by what all have in common.

    They are two's complement, or all odd (+-1, DoReFa's).

    A channel that BatchNorm turned off has the code 0, and one that it flipped may have
    2^(b-1): those layers take a bit more in the file.
    """
    codes, _ = _divided(codes, bits)
    return code_width(codes) <= bits or _is_odd(codes, bits)


def _is_odd(codes: Codes, bits: int) -> bool:
    """Return whether `bits` digits of +-1 hold the codes."""
    largest = int(np.abs(codes.astype(np.int16)).max(initial=0))
    return bool(np.all(codes & 1)) and largest < 1 << bits


def _divided(codes: Codes, bits: int) -> tuple[Codes, int]:
    """Return codes for `bits` bits and the power of two that they are divided by."""
    is_held = code_width(codes) <= bits or _is_odd(codes, bits)
    return (codes, 0) if is_held else narrowed(codes, bits)


def stored_width(codes: Codes, bits: int) -> int:
    """Return the bits in which a layer of `bits` bits is stored: one more where it must."""
    if holds(codes, bits):
        return bits
    return next(width for width in range(bits, 9) if holds(codes, width))


def code_width(codes: Codes) -> int:
    """Return the smallest signed width that holds `codes`."""
    top, bottom = int(codes.max(initial=0)), int(~codes.min(initial=0))
    return max(top.bit_length(), bottom.bit_length()) + 1


def stored_bytes(codes: Codes, bits: int, *, int2: bool = True) -> int:
    """Return the bytes that `pack` takes for `codes` alone, nodes and names not counted."""
    return _choose(codes, bits, "weights", int2)[0]


def weight_bytes(program: Program, *, int2: bool = True) -> int:
    """Return the bytes of all weights as `pack` stores them, of islands as they are."""
    packed = 0
    for op, bits in program.layers():
        codes = weight_of(op)
        packed += stored_bytes(codes, stored_width(codes, bits.weight), int2=int2)
    return packed + sum(island.weight_bytes for island in program.islands())


def required_versions(graph: ir.Graph) -> tuple[int, int]:
    """Return the smallest (opset, IR version) that knows the types of all initializers."""
    narrow = {ir.DataType.INT2, ir.DataType.UINT2}
    found = any(value.dtype in narrow for value in graph.initializers.values())
    return INT2_VERSIONS if found else PLAIN_VERSIONS


class Site:
    """Where the constants and nodes of one packed tensor go."""

    def __init__(self, graph: ir.Graph, before: ir.Node | None, name: str) -> None:
        self.graph, self.before, self.name = graph, before, name

    def apply(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """Return the result of a new node."""
        node = ir.node(op_type, inputs, attributes)
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def shared(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Return the initializer `name` that all packed tensors of the graph read."""
        known = self.graph.initializers.get(name)
        held = constant(known)
        if known is None or held is None or not np.array_equal(held, array):
            return add_constant(self.graph, name, array)
        return known


def _choose(codes: Codes, bits: int, name: str, int2: bool) -> tuple[int, Form]:
    """Return the bytes of the codes, and the writer, of the form with the smallest file."""
    _, shift = _divided(codes, bits)
    odd, ragged = _all_odd(codes >> shift, bits, name), codes.size % 4 != 0
    forms = [
        ((codes.size * width + 7) // 8, _container(width, shift if width < 8 else 0))
        for width in _CONTAINERS
        if width >= bits + odd and (int2 or width > 2)
    ]
    if bits < 8:
        forms.append((plane_bytes(codes.size, bits), _planes(bits, odd, shift)))
    return min(forms, key=lambda form: form[0] + _overhead(form[1], codes.ndim, ragged))


def _all_odd(codes: Codes, bits: int, name: str) -> bool:
    """Return whether the codes need digits +-1; refuse those that no `bits` digits hold."""
    half = 1 << (bits - 1)
    lo, hi = int(codes.min(initial=0)), int(codes.max(initial=0))
    if -half <= lo and hi < half:
        return False
    if max(-lo, hi) < 2 * half and bool(np.all(codes & 1)):
        return True
    raise UnsupportedError(f"{name}: codes {lo} to {hi} do not fit {bits} bits")


@cache
def _overhead(form: Form, rank: int, ragged: bool) -> int:
    """Bytes of a file with one tensor that are not its codes: nodes, names, tables."""
    graph = ir.Graph([], [], nodes=[])
    codes = np.zeros((1 if ragged else 4, *[1] * (rank - 1)), np.int8)
    form(Site(graph, None, "weights"), codes)
    proto = ir.to_proto(graph)
    del proto.value_info[:]
    for node in proto.node:  # as in the emitted file
        node.ClearField("name")
    stored = next(tensor for tensor in proto.initializer if tensor.name == "weights")
    return int(proto.ByteSize()) - len(stored.raw_data)


@cache
def _container(width: int, shift: int) -> Form:
    """Return the writer of forms 1 and 2."""

    def write(site: Site, codes: Codes) -> ir.Value:
        stored = (codes >> shift).astype(_CONTAINERS[width])
        value = add_constant(site.graph, site.name, stored)
        if width == 8:
            return value
        if not shift:
            return site.apply("Cast", value, to=int(ir.DataType.INT8))
        table = site.shared(f"qtool.int{width}_{1 << shift}", multiples(width, shift))
        return site.apply(
            "Gather", table, site.apply("Cast", value, to=int(ir.DataType.INT32))
        )

    return write


def multiples(width: int, shift: int) -> Codes:
    """Return every code of `width` bits times ``2 ** shift``, (2^width,), -1 the last one."""
    half = 1 << (width - 1)
    codes = np.roll(np.arange(-half, half), half)
    return (codes << shift).astype(np.int8)


@cache
def _planes(bits: int, odd: bool, shift: int) -> Form:
    """Return the writer of form 3."""

    def write(site: Site, codes: Codes) -> ir.Value:
        kind = "signs" if odd else "bits"
        table = site.shared(f"qtool.{kind}", TABLES[odd])
        values = place_values(bits, odd, shift)
        place = site.shared(
            f"qtool.{kind}_{bits}" + (f"_{1 << shift}" if shift else ""), values
        )
        planes = add_constant(site.graph, site.name, to_planes(codes >> shift, bits, odd))
        index = site.apply("Cast", planes, to=int(ir.DataType.INT32))
        digits = site.apply("Gather", table, index, axis=1)
        wide = site.apply("MatMulInteger", digits, place)
        value = site.apply("Cast", wide, to=int(ir.DataType.INT8))
        if codes.size % 4:
            start, size = (
                site.shared(f"qtool.int_{n}", np.array([n])) for n in (0, codes.size)
            )
            flat = site.apply("Reshape", value, site.shared("qtool.int_-1", np.array([-1])))
            value = site.apply("Slice", flat, start, size)
        shape = "qtool.shape_" + "x".join(map(str, codes.shape))
        return site.apply("Reshape", value, site.shared(shape, np.array(codes.shape)))

    return write
