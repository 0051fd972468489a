"""Integer dialect -> a TVM module whose kernels are generated for one CPU.

The module's ``main`` (image -> float logits) is one TIR function that calls kernels in order,
with pointers into one arena and one array of constants; Relax sees a single call. ``trace`` is
the same steps where no tensor overwrites another, and returns all of that memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm import te_kernels
from passes.emit.tvm.cpu.kernels.layout import Layout, round_up
from passes.emit.tvm.cpu.plan.memory import ALIGNMENT, apart, arrange
from passes.emit.tvm.cpu.plan.plan import Plan, make_plan
from passes.emit.tvm.cpu.plan.steps import INPUT, OUTPUT, Kernel, Operand
from passes.emit.tvm.cpu.tuner import tuned_plan
from passes.emit.tvm.cpu.vectors.units import vectors
from passes.emit.tvm.cpu_target import CpuTarget
from passes.emit.tvm.tuning import TuneOptions
from qtool.core.dialect import Program

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TvmModule:
    """A module and what is to be known about it.

    Args:
        ir: IRModule with the Relax functions ``main`` and ``trace``.
        facts: JSON values: tensors, memory, kernels, what fell back.
    """

    ir: Any
    facts: dict[str, Any]


def emit_tvm(
    program: Program,
    target: CpuTarget,
    batch: int = 1,
    tune: TuneOptions | None = None,
    progress: Progress | None = None,
) -> TvmModule:
    """Return the module of `program` for `target` at a fixed batch size.

    Args:
        program: the integer dialect.
        target: the CPU.
        batch: images per call.
        tune: measure tiles instead of choosing them by rule.
        progress: told what is going on.

    Raises:
        UnsupportedError: a float island; names it.
        UserError: there is something to measure, for another CPU than this machine's.
    """
    for island in program.islands():
        te_kernels.kernel(island)  # says why there is none, before the plan is made
    unit = vectors(_unit(target))
    plan = (
        make_plan(program, unit)
        if tune is None
        else tuned_plan(program, unit, target, tune, progress)
    )
    if progress is not None:
        for fallback in plan.fallbacks:
            progress("{layer}: portable kernel for {operator}: {reason}".format(**fallback))
    return _Emitter(program, plan, batch).module()


def _unit(target: CpuTarget) -> str:
    """Return the name of the vector unit of a CPU."""
    if target.isa == "avx512_vnni" and target.vbmi:
        return "avx512_vbmi"
    if target.isa == "arm_dotprod":
        return "neon_i8mm" if "i8mm" in target.features else "neon_dot"
    if target.isa == "generic":
        return "sse2" if target.architecture == "x86_64" else "portable"
    return target.isa


class _Emitter:
    """Writes the functions of a module."""

    def __init__(self, program: Program, plan: Plan, batch: int) -> None:
        self._program, self._plan, self._batch = program, plan, batch
        self._functions: dict[Any, Any] = {}
        self._names: dict[Kernel, Any] = {}
        self._constants = _Constants()
        lives = plan.lives()
        self._arena, self.arena_bytes = arrange(lives)
        self._apart, self.trace_bytes = apart(lives)

    def module(self) -> TvmModule:
        """Return the module."""
        for step in self._plan.steps:
            self._kernel(step.kernel)
            for array in step.constants:
                self._constants.add(array)
        builder = relax.BlockBuilder(tvm.IRModule(self._functions))
        for name, shape, kind in (
            ("main", self._result_shape(), "float32"),
            ("trace", (self._batch, self.trace_bytes), "uint8"),
        ):
            function = self._net(f"qtool_{name}", trace=name == "trace")
            self._relax(
                builder, name, builder.add_func(function, f"qtool_{name}"), shape, kind
            )
        return TvmModule(builder.get(), self._facts())

    def _kernel(self, kernel: Kernel) -> Any:
        """Return the function of a kernel, one for equal specifications."""
        if kernel not in self._names:
            name = f"k{len(self._names)}_{kernel.name()}"
            reference = tvm.ir.GlobalVar(name)
            self._functions[reference] = kernel.build(name)
            self._names[kernel] = reference
        return self._names[kernel]

    def _arena_shape(self) -> tuple[int, int]:
        return 1, self.arena_bytes

    def _result_shape(self) -> tuple[int, ...]:
        return (self._batch, *self._program.shapes()[self._plan.result])

    def _net(self, name: str, trace: bool) -> Any:
        """Return the function that calls all kernels."""
        program, images = self._program, self._batch
        shape = (images, *program.input_shape)
        result = (images, self.trace_bytes) if trace else self._result_shape()
        with IRBuilder() as builder, T.prim_func(s_tir=False):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            x = T.arg("x", T.buffer(shape, program.input_kind, layout=None))
            blob = T.arg("constants", T.buffer((self._constants.size,), "uint8", layout=None))
            kind = "uint8" if trace else "float32"
            y = T.arg("y", T.buffer(result, kind, layout=None))
            # An argument: TVM would shrink an allocation to the bytes that it sees in use.
            memory = (
                y
                if trace
                else T.arg("arena", T.buffer(self._arena_shape(), "uint8", layout=None))
            )
            with T.serial(0, images) as image:
                # A trace has memory for every image; the arena is the same for all.
                offsets, row = (self._apart, image) if trace else (self._arena, 0)
                self._calls(_Pointers(x, y, memory, blob, image, row, offsets), trace)
        return builder.get()

    def _calls(self, pointers: "_Pointers", trace: bool) -> None:
        for step in self._plan.steps:
            if trace and step.output.tensor == OUTPUT:
                continue
            args = [pointers.of(operand) for operand in (*step.inputs, step.output)]
            args += [pointers.constant(self._constants.place(a)) for a in step.constants]
            T.evaluate(T.Call(self._names[step.kernel], args, ret_ty="int32"))

    def _relax(
        self, builder: Any, name: str, function: Any, shape: tuple[int, ...], kind: str
    ) -> None:
        program = self._program
        x = relax.Var(
            "input", relax.TensorType((self._batch, *program.input_shape), program.input_kind)
        )
        with builder.function(name, [x], attrs={"global_symbol": name}):
            with builder.dataflow():
                blob = relax.const(self._constants.array())
                results = [relax.TensorType(shape, kind)]
                if name == "main":
                    results.append(relax.TensorType(self._arena_shape(), "uint8"))
                call = builder.emit(relax.call_tir(function, [x, blob], results))
                result = builder.emit_output(call[0] if len(results) > 1 else call)
            builder.emit_func_output(result)

    def _float_tensors(self) -> list[str]:
        """Return the tensors that some kernel's function does not take as codes."""
        found = []
        for step in self._plan.steps:
            operands = (*step.inputs, step.output)
            parameters = self._functions[self._names[step.kernel]].params
            for operand, parameter in zip(operands, parameters, strict=False):
                kind = str(parameter.ty.element_type)
                if operand.tensor in self._plan.tensors and kind != "uint8":
                    found.append(operand.tensor)
        return found

    def _facts(self) -> dict[str, Any]:
        plan = self._plan
        uses: dict[str, list[str]] = {}
        for step in plan.steps:
            uses.setdefault(self._names[step.kernel].name_hint, []).append(step.layer)
        return {
            "tensors": list(plan.tensors),
            "fused_tensors": list(plan.fused),
            "trace": {
                name: _address(
                    self._apart[plan.alias(name)], plan.layouts[plan.alias(name)], shape
                )
                for name, shape in self._program.shapes().items()
                if name in plan.tensors
            },
            "arena_bytes": self.arena_bytes,
            "largest_pair_bytes": plan.largest_pair,
            "kernels": [
                {"function": name, "layers": layers, "count": len(layers)}
                for name, layers in uses.items()
            ],
            "fallbacks": list(plan.fallbacks),
            "packed_weights": list(plan.packed_weights),
            "weight_blob_bytes": self._constants.size,
            "float_tensors": self._float_tensors(),
        }


def _address(offset: int, layout: Layout, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return where a tensor's codes are in the memory that ``trace`` returns."""
    return {
        "offset": offset + layout.origin, "shape": list(shape),
        "strides": layout.strides(shape),
    }  # fmt: skip


@dataclass(frozen=True)
class _Pointers:
    """What a step's operands are at run time."""

    x: Any
    y: Any
    memory: Any
    blob: Any
    image: Any
    row: Any
    offsets: dict[str, int]

    def of(self, operand: Operand) -> Any:
        """Return the pointer of an operand."""
        if operand.tensor in (INPUT, OUTPUT):
            buffer = self.x if operand.tensor == INPUT else self.y
            return T.address_of(buffer[(self.image, *[0] * (len(buffer.shape) - 1))])
        return T.address_of(
            self.memory[self.row, self.offsets[operand.tensor] + operand.offset]
        )

    def constant(self, offset: int) -> Any:
        """Return the pointer of a constant."""
        return T.address_of(self.blob[offset])


class _Constants:
    """All constants in one array, equal ones once."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.uint8]] = []
        self._places: dict[bytes, int] = {}
        self.size = 0
        # Programs that only move codes have none, and TVM no empty arrays.
        self.add(np.zeros(1, np.uint8))

    def add(self, array: NDArray[Any]) -> None:
        """Append a constant unless it is there."""
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = raw.tobytes()
        if key in self._places:
            return
        self._places[key] = self.size
        padded = np.zeros(round_up(raw.size + ALIGNMENT, ALIGNMENT), np.uint8)
        padded[: raw.size] = raw
        self._parts.append(padded)
        self.size += padded.size

    def place(self, array: NDArray[Any]) -> int:
        """Return the offset of a constant."""
        return self._places[np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()]

    def array(self) -> NDArray[np.uint8]:
        """Return all of it."""
        return np.concatenate(self._parts)
