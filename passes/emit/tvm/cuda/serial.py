"""Kernels with bound threads -> the same kernels as loops, which a CPU runs: a proof.

    for b in thread_binding("blockIdx.x"):                for b in serial:
        acc: local, s: shared                                 acc: one for every thread, s
        for t in thread_binding("threadIdx.x"): s[t] = ...     for t in serial: s[t] = ...
        for t in thread_binding("threadIdx.x"):                for t in serial:
            acc[0] = dp4a(s[..], w, acc[0])                        acc[t, 0] = acc[t, 0] + ...

Nothing of a kernel is written a second time: index arithmetic, staging, fragments, borders and
requantization are the ones that the GPU gets, so that equal integers prove them. The rewriting
is exact because of how kernels are written: where threads read what others wrote, to shared
memory or to a fragment of `mma`, another loop over all threads begins. There TVM puts the
barrier, and there a loop has finished for every thread. A kernel whose loop over threads both
reads and writes such memory would race on a GPU, and is refused.
"""

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad
from tvm.tirx import ForKind

from passes.emit.tvm.cpu_target import CpuTarget
from passes.emit.tvm.cuda import intrinsics
from passes.emit.tvm.cuda.lowering_pipeline import compile_module
from passes.emit.tvm.lowering_pipeline import NO_ALIASING_BY_NAME

Stmt = Any
_SCOPES = ("shared", "local")
THREADS = "threadIdx.x"


def compile_serially(module: Any, target: CpuTarget) -> Any:
    """Return the executable, for a CPU, of a module of `passes.emit.tvm.cuda.module`."""
    options = {**target.llvm(), "cl-opt": [NO_ALIASING_BY_NAME]}
    return compile_module(serial_module(module), tvm.target.Target(options))[0]


def serial_module(module: Any) -> Any:
    """Return an IRModule whose functions bind no threads.

    Raises:
        ValueError: threads of a kernel race.
    """
    functions = {
        name: _serial(function) if isinstance(function, tirx.PrimFunc) else function
        for name, function in module.functions_items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)


def _serial(function: Any) -> Any:
    return function.with_body(_Serial(function.body).rewrite())


class _Serial:
    """Rewrites one body."""

    def __init__(self, body: Stmt) -> None:
        self._body = body
        outer, inner, threads = _allocations(body)
        # What belongs to one thread, and is alive between loops over all of them.
        self._private = {
            buffer: _plain(buffer, (threads,)) for buffer in outer if buffer.scope() == "local"
        }
        self._other = {
            buffer: _plain(buffer)
            for buffer in (*outer, *inner)
            if buffer.scope() in _SCOPES and buffer not in self._private
        }
        self._thread: Any = None

    def rewrite(self) -> Stmt:
        """Return the body without threads."""
        return tvm_ffi.structural_mutate(
            self._body, [(tirx.For, self._loop), (tirx.AllocBuffer, self._allocate)]
        )

    def _loop(self, loop: Any, mutator: Any) -> Stmt:
        if _is_bound(loop, THREADS):
            return _unbound(loop, self._stage(loop.loop_var, mutator.mutate(loop.body)))
        if loop.thread_binding is not None:
            return _unbound(loop, mutator.mutate(loop.body))
        # An unrolled loop is a matter of registers; here it would only be long.
        found = mutator.default_mutate(loop)
        return _unbound(found, found.body) if loop.kind == ForKind.UNROLLED else found

    def _allocate(self, node: Any, mutator: Any) -> Stmt:
        found = self._private.get(node.buffer, self._other.get(node.buffer))
        return node if found is None else tirx.AllocBuffer(found)

    def _stage(self, thread: Any, body: Stmt) -> Stmt:
        """Return what one thread does between two barriers, as a turn of a loop."""
        self._thread = thread
        self._refuse_races(body)
        return tvm_ffi.structural_map(
            body,
            [
                (TensorLoad, self._load), (tirx.BufferStore, self._store),
                (Call, self._call), (tirx.Evaluate, self._evaluate),
            ],
        )  # fmt: skip

    def _refuse_races(self, body: Stmt) -> None:
        """Raise `ValueError` where a stage reads what its other threads write."""
        written: list[Any] = []
        read: list[Any] = []

        def load(node: Any) -> None:
            if node.source.scope() == "shared":
                read.append(node.source)

        def call(node: Any) -> None:
            if intrinsics.called(node) == intrinsics.MMA.name:
                for fragment in intrinsics.arguments(node)[1:]:
                    tvm_ffi.structural_walk(
                        fragment, (TensorLoad, lambda found: read.append(found.source))
                    )

        tvm_ffi.structural_walk(
            body,
            [
                (tirx.BufferStore, lambda node: written.append(node.buffer)),
                (TensorLoad, load), (Call, call),
            ],
        )  # fmt: skip
        for buffer in read:
            if any(buffer.same_as(other) for other in written):
                raise ValueError(f"a loop over threads reads and writes {buffer.name}: a race")

    def _place(self, buffer: Any, indices: Any) -> tuple[Any, list[Any]]:
        if buffer in self._private:
            return self._private[buffer], [self._thread, *indices]
        return self._other.get(buffer, buffer), list(indices)

    def _load(self, load: Any) -> Any:
        return tirx.BufferLoad(*self._place(load.source, load.indices))

    def _store(self, store: Any) -> Stmt:
        buffer, indices = self._place(store.buffer, store.indices)
        return tirx.BufferStore(buffer, store.value, indices)

    def _call(self, call: Any) -> Any:
        meaning = intrinsics.MEANINGS.get(intrinsics.called(call) or "")
        return call if meaning is None else meaning(*intrinsics.arguments(call))

    def _evaluate(self, node: Any) -> Stmt:
        call = node.value
        if not isinstance(call, Call) or intrinsics.called(call) != intrinsics.MMA.name:
            return node
        address, *args = intrinsics.arguments(call)
        into = address.args[0]
        lane = tirx.floormod(self._thread, intrinsics.WARP)

        def at(index: int, other: Any) -> Any:
            return _replaced(args[index], self._thread, self._thread - lane + other)

        *before, last = into.indices
        q = tirx.Var("q", "int32")
        adds = [
            tirx.BufferStore(into.source, _element(into, i) + total, [*before, last + i])
            for i, total in enumerate(intrinsics.mma_sums(lane, q, at))
        ]
        return tirx.For(q, 0, intrinsics.QUAD, ForKind.SERIAL, tirx.stmt_seq(*adds))


def _element(load: Any, index: int) -> Any:
    *before, last = load.indices
    return tirx.BufferLoad(load.source, [*before, last + index])


def _replaced(value: Any, variable: Any, other: Any) -> Any:
    """Return `value` with `other` for `variable`."""
    return tvm_ffi.structural_map(
        value, (tirx.Var, lambda found: other if found.same_as(variable) else found)
    )


def _allocations(body: Stmt) -> tuple[list[Any], list[Any], int]:
    """Return the buffers allocated outside of loops over threads, those inside; threads."""
    every: list[Any] = []
    inner: list[Any] = []
    extents = [1]

    def loop(node: Any) -> None:
        if _is_bound(node, THREADS):
            extents.append(int(node.extent))
            inner.extend(_buffers(node.body))

    every += _buffers(body)
    tvm_ffi.structural_walk(body, (tirx.For, loop))
    return [b for b in every if not any(b.same_as(i) for i in inner)], inner, max(extents)


def _buffers(body: Stmt) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(body, (tirx.AllocBuffer, lambda node: found.append(node.buffer)))
    return found


def _plain(buffer: Any, before: tuple[int, ...] = ()) -> Any:
    """Return a buffer of the same kind without a scope, with further dimensions in front."""
    shape = [*before, *buffer.ty.shape]
    return tirx.decl_buffer(shape, buffer.ty.dtype, buffer.name, layout=None)


def _is_bound(loop: Any, axis: str) -> bool:
    binding = loop.thread_binding
    return binding is not None and binding.thread_tag == axis


def _unbound(loop: Any, body: Stmt) -> Stmt:
    return tirx.For(loop.loop_var, loop.min, loop.extent, ForKind.SERIAL, body)
