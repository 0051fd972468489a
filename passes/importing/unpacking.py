"""``INT2/INT4 -> Cast``, bit planes or a table -> codes: what `passes.packing` wrote.

1. Initializers of INT8, INT4 and INT2. 2. These behind a Cast to INT8. 3. The chain
``Reshape(Cast(MatMulInteger(Gather(T, Cast(P)), place)))``, or with ``Slice(Reshape(.))`` in
it, where T and place are exactly those of `passes.packing.bit_planes`. 4. Any of these behind
``Gather(T, Cast(.))`` or ``Gather(T, Add(Cast(.), rule))``, T int8: multiples of the codes
(`passes.packing.packing`), other codes (`passes.packing.nesting`), or the one of the other.
Nothing is evaluated that a damaged file could make large: there are as many codes as the file
has planes for.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.packing.bit_planes import TABLES, Codes, from_planes, place_values
from qtool.core.dialect import constant

_SIGNED = tuple(np.dtype(kind) for kind in (np.int8, ml_dtypes.int4, ml_dtypes.int2))
_DECODER = ["Cast", "MatMulInteger", "Gather", "Cast"]


def unpack(value: ir.Value | None) -> Codes | None:
    """Return the codes behind what `pack` or `place` of `passes.packing` returned.

    Returns:
        int8 codes, also of any INT8, INT4 or INT2 constant, bare or behind Cast to INT8; None
        when `value` is computed in another way, or is no signed integer of 8 or fewer bits.
    """
    looked_up = _looked_up(value, lambda stored: _looked_up(stored, _packed))
    if looked_up is None:
        looked_up = _looked_up(value, _packed)
    return _packed(value) if looked_up is None else looked_up


def _packed(value: ir.Value | None) -> Codes | None:
    """Return the codes of forms 1 to 3."""
    chain = _chain(value)
    source = _input(chain[0], 0) if [n.op_type for n in chain] == ["Cast"] else value
    if source is not value and not _casts(chain[0], ir.DataType.INT8):
        return None
    codes = constant(source)
    if codes is not None:
        return codes.astype(np.int8) if codes.dtype in _SIGNED else None
    return _read_planes(chain)


def _looked_up(
    value: ir.Value | None, read: Callable[[ir.Value | None], Codes | None]
) -> Codes | None:
    """Return the answers to stored codes, None where `value` is nothing like that.

    Args:
        value: the answers.
        read: returns the stored codes.
    """
    gather = None if value is None else value.producer()
    if gather is None or gather.op_type != "Gather":
        return None
    if gather.attributes.get_int("axis", 0) != 0:
        return None
    answers, node = constant(_input(gather, 0)), _producer(gather, 1)
    shift: NDArray[Any] | None = np.zeros((), np.int32)
    if node is not None and node.op_type == "Add" and not node.domain:
        shift, node = constant(_input(node, 1)), _producer(node, 0)
    if answers is None or answers.ndim != 1 or answers.dtype != np.int8:
        return None
    if node is None or not _casts(node, ir.DataType.INT32) or shift is None:
        return None
    stored = read(_input(node, 0))
    return None if stored is None else _answered(answers, stored, shift)


def _answered(answers: Codes, stored: Codes, shift: NDArray[Any]) -> Codes | None:
    """Return ``answers[stored + shift]``, None where that is outside or of another shape."""
    one_each = shift.ndim <= stored.ndim and all(
        n in (1, m) for n, m in zip(shift.shape[::-1], stored.shape[::-1], strict=False)
    )
    if not one_each or shift.dtype != np.int32:
        return None
    index, count = stored.astype(np.int64) + shift, len(answers)
    if index.min(initial=0) < -count or index.max(initial=0) >= count:
        return None
    found: Codes = answers[index]
    return found


def _chain(value: ir.Value | None) -> list[ir.Node]:
    """Return up to seven nodes that compute `value`, last first."""
    nodes: list[ir.Node] = []
    while len(nodes) < 7 and value is not None and (node := value.producer()) is not None:
        nodes.append(node)
        value = _input(node, 1 if node.op_type == "Gather" else 0)
    return nodes


def _read_planes(chain: list[ir.Node]) -> Codes | None:
    """Return the codes that the nodes of form 3 compute, None when they are another graph."""
    kinds = [node.op_type for node in chain]
    sliced = kinds[:3] == ["Reshape", "Slice", "Reshape"]
    decoder = chain[3 if sliced else 1 :]
    if kinds[:1] != ["Reshape"] or [node.op_type for node in decoder] != _DECODER:
        return None
    shape, found = constant(_input(chain[0], 1)), _planes(decoder)
    if shape is None or found is None or shape.ndim != 1 or np.any(shape <= 0):
        return None
    planes, odd, shift = found
    size, room = int(np.prod(shape.astype(object))), 4 * planes.shape[0]
    if not (room - 4 < size < room and _is_prefix(chain, size) if sliced else size == room):
        return None
    return from_planes(planes, size, odd).reshape(shape) << shift


def _planes(decoder: list[ir.Node]) -> tuple[NDArray[Any], bool, int] | None:
    """Return P, whether its digits are +-1, and the power of two that codes are times."""
    narrow, matmul, gather, widen = decoder
    planes, table = constant(_input(widen, 0)), constant(_input(gather, 0))
    place = constant(_input(matmul, 1))
    if (
        planes is None
        or planes.ndim != 2
        or planes.dtype != ml_dtypes.uint4
        or not 1 <= planes.shape[1] <= 7
        or not _casts(narrow, ir.DataType.INT8)
        or not _casts(widen, ir.DataType.INT32)
        or gather.attributes.get_int("axis", 0) != 1
        or len(matmul.inputs) != 2
    ):
        return None
    bits = planes.shape[1]
    for (odd, digits), shift in product(TABLES.items(), range(8 - bits)):
        if _same(table, digits) and _same(place, place_values(bits, odd, shift)):
            return planes, odd, shift
    return None


def _is_prefix(chain: list[ir.Node], size: int) -> bool:
    """Return whether ``Slice(Reshape(.))`` keeps the first `size` elements."""
    _, cut, flat = chain[:3]
    expected = ((flat, 1, -1), (cut, 1, 0), (cut, 2, size))
    return len(cut.inputs) == 3 and all(
        _same(constant(_input(node, index)), np.array([number]))
        for node, index, number in expected
    )


def _producer(node: ir.Node, index: int) -> ir.Node | None:
    value = _input(node, index)
    return None if value is None else value.producer()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _casts(node: ir.Node, kind: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.attributes.get_int("to", 0) == int(kind)


def _same(got: NDArray[Any] | None, expected: NDArray[Any]) -> bool:
    return got is not None and got.dtype == expected.dtype and np.array_equal(got, expected)
