"""A few words on top of TVM's IR builder, for kernels of blocks and threads.

Tensors are (N, H, W, bytes of a pixel) uint8, or (N, ...) where the layout is plain; constants
are flat. What a kernel loads are registers of four codes: views of the same memory as uint32
or int32.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.layout import Layout

Expr = Any
Buffer = Any
# Codes in a register.
REGISTER = 4


@dataclass(frozen=True)
class Argument:
    """An argument of a kernel.

    Args:
        name: of it.
        shape: of it.
        kind: type of its elements.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "uint8"


def function(name: str, arguments: Sequence[Argument], body: Callable[..., None]) -> Any:
    """Return a function of buffers whose body `body` writes; the last is its result."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        buffers = [T.arg(a.name, T.buffer(a.shape, a.kind, layout=None)) for a in arguments]
        body(*buffers)
    return builder.get()


def stored_shape(batch: int, layout: Layout) -> tuple[int, ...]:
    """Return the shape of a tensor as kernels take it."""
    if layout.plain:
        return (batch, *layout.shape)
    return (batch, layout.height, layout.width, layout.pixel)


def view(buffer: Buffer, kind: str) -> Buffer:
    """Return the memory of a uint8 or int8 buffer as registers of type `kind`."""
    return T.decl_buffer((_size(buffer) // REGISTER,), kind, data=buffer.data, layout=None)


def flat(buffer: Buffer) -> Buffer:
    """Return a buffer with a single dimension."""
    return T.decl_buffer((_size(buffer),), str(buffer.dtype), data=buffer.data, layout=None)


def _size(buffer: Buffer) -> int:
    return prod(int(n) for n in buffer.shape)


def blocks(count: int) -> Any:
    """Return the loop over blocks, all at once."""
    return T.thread_binding(0, count, thread="blockIdx.x")


def threads(count: int) -> Any:
    """Return the loop over a block's threads, up to a barrier."""
    return T.thread_binding(0, count, thread="threadIdx.x")


def registers(count: int, kind: str = "int32") -> Buffer:
    """Return memory of every thread of its own."""
    return T.alloc_buffer((count,), kind, scope="local", layout=None)


def shared(count: int, kind: str) -> Buffer:
    """Return memory of a block."""
    return T.alloc_buffer((count,), kind, scope="shared", layout=None)


def store(buffer: Buffer, value: Expr, *index: Expr) -> None:
    """Write an element, or the elements of a ramp."""
    T.buffer_store(buffer, value, list(index))


@contextmanager
def where(condition: Expr | None) -> Iterator[None]:
    """Do what follows where `condition` holds; always where it is None."""
    if condition is None:
        yield
    else:
        with T.If(condition), T.Then():
            yield


def span(start: Expr, lanes: int) -> Expr:
    """Return the index of `lanes` elements in a row."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def spread(value: Expr, lanes: int) -> Expr:
    """Return `value` in each of `lanes` elements."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def let(value: Expr) -> Expr:
    """Compute `value` once, here, and return its name."""
    return T.bind(value)
