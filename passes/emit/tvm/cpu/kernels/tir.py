"""A few words on top of TVM's IR builder, for functions with raw pointers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm.ir import Op
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

Expr = Any
Buffer = Any

# Kernels index raw pointers; the extent of the buffer view only has to be large enough.
_EXTENT = 2**31 - 1
RESULT = "int32"
_SECOND_LEVEL = 2
# Without it TVM takes local buffers from its heap.
_ON_STACK = {"disable_lower_builtin": True}


def function(name: str, pointers: Sequence[tuple[str, str]], body: Callable[..., None]) -> Any:
    """Return a private function of pointers whose body `body` writes.

    Args:
        name: of the function.
        pointers: names and element types of its arguments, in order.
        body: called with a flat buffer for each pointer.
    """
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=False):
        T.func_name(name)
        # True of one call: what it writes is nothing that it reads.
        T.func_attr({"tirx.noalias": True})
        T.func_ret(tvm.ir.PrimType(RESULT))
        handles = [T.arg(arg, T.handle(kind)) for arg, kind in pointers]
        buffers = [
            T.decl_buffer((_EXTENT,), kind, data=handle, layout=None)
            for handle, (_, kind) in zip(handles, pointers, strict=True)
        ]
        for buffer, (arg, _) in zip(buffers, pointers, strict=True):
            IRBuilder.name(arg.upper(), buffer)
        body(*buffers)
        T.Return(T.int32(0))
    return builder.get()


class Registers:
    """Vectors that live in registers; a buffer each, because TVM puts large ones on the heap.

    Args:
        count: of the vectors.
        lanes: elements of each.
        kind: type of an element.
    """

    def __init__(self, count: int, lanes: int, kind: str = "int32") -> None:
        self._lanes = lanes
        self._buffers = [
            T.alloc_buffer((lanes,), kind, scope="local", layout=None, annotations=_ON_STACK)
            for _ in range(count)
        ]

    def __getitem__(self, index: int) -> Expr:
        return load(self._buffers[index], 0, self._lanes)

    def __setitem__(self, index: int, value: Expr) -> None:
        store(self._buffers[index], 0, value, self._lanes)


def scratch(count: int, kind: str, lanes: int) -> Buffer:
    """Return an array on the stack, aligned to vectors of `lanes` int32."""
    itemsize = tvm.DataType(kind).bits // 8
    vectors = -(-count * itemsize // (4 * lanes))
    found = T.alloc_buffer(
        (vectors,), f"int32x{lanes}", scope="local", layout=None, annotations=_ON_STACK
    )
    return T.decl_buffer((count,), kind, data=found.data, layout=None)


def align_frame(lanes: int) -> None:
    """Make the compiler align the stack, here and for all of the function, to whole vectors.

    LLVM does not for registers that it spills, and a spilled vector that straddles two cache
    lines costs two accesses each time. A local vector that cannot be optimized away, because
    its address is prefetched, forces the alignment.
    """
    address = T.address_of(scratch(lanes, "int32", lanes)[0])
    options = (T.int32(0), T.int32(3), T.int32(1))
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", address, *options))


def load(buffer: Buffer, offset: Expr, lanes: int) -> Expr:
    """Return `lanes` consecutive elements."""
    return buffer[T.ramp(offset, 1, lanes)]


def store(buffer: Buffer, offset: Expr, value: Expr, lanes: int) -> None:
    """Write `lanes` consecutive elements."""
    T.buffer_store(buffer, value, [T.ramp(offset, 1, lanes)])


def prefetch(buffer: Buffer, offset: Expr) -> None:
    """Bring the elements at `offset`, which may lie behind the end, nearer to the CPU."""
    read, data = T.int32(0), T.int32(1)
    arguments = [T.address_of(buffer[offset]), read, T.int32(_SECOND_LEVEL), data]
    T.evaluate(T.Call(Op.get("tirx.prefetch"), arguments, ret_ty="void"))


def let(value: Expr) -> Expr:
    """Compute `value` once, here, and return its name."""
    return T.bind(value)


@contextmanager
def loop(count: int, parallel: bool = False) -> Iterator[Expr]:
    """Yield the index of a loop; 0 where there is a single turn."""
    if count == 1:
        yield 0
    else:
        with (T.parallel if parallel else T.serial)(0, count) as index:
            yield index


def intrinsic(kind: str, name: str, *args: Expr) -> Expr:
    """Return a call of the LLVM intrinsic `name`."""
    return T.call_llvm_pure_intrin(kind, name, *args)


def reinterpret(value: Expr, kind: str) -> Expr:
    """Return the same bits as another type."""
    return T.reinterpret(kind, value)
