"""Integer dialect -> a TVM module whose kernels are generated for one CPU.

The module's ``main`` (image -> float logits) is one TIR function that calls kernels in order,
with pointers into one arena and one array of constants; Relax sees a single call. ``trace`` is
the same steps where no tensor overwrites another, and returns all of that memory.

A module of one network at several pairs of bit-widths has both for every pair, under names of
their own; kernels of equal specification, and equal constants, are there once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm import te_kernels
from passes.emit.tvm.cpu.constants import Constants
from passes.emit.tvm.cpu.kernels.layout import Layout
from passes.emit.tvm.cpu.narrowing import MADE, Weights, narrow_weights
from passes.emit.tvm.cpu.network import Network
from passes.emit.tvm.cpu.plan.plan import Plan, make_plan
from passes.emit.tvm.cpu.plan.steps import OUTPUT, Kernel, Step
from passes.emit.tvm.cpu.pointers import Pointers, Stored
from passes.emit.tvm.cpu.tuner import tuned_plan
from passes.emit.tvm.cpu.vectors.units import vectors
from passes.emit.tvm.cpu_target import CpuTarget
from passes.emit.tvm.tuning import TuneOptions
from qtool.core.dialect import Program
from qtool.core.sealed import function_names

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TvmModule:
    """A module and what is to be known about it.

    Args:
        ir: IRModule with two Relax functions for each network, called as
            `qtool.core.sealed.function_names` says.
        networks: JSON values by pair, None for the only network: tensors, memory, kernels,
            what fell back.
        constants: bytes of all constants.
        weights: what is made for each pair that needs it (`passes.emit.tvm.cpu.narrowing`).
    """

    ir: Any
    networks: dict[str | None, dict[str, Any]]
    constants: int
    weights: dict[str | None, Weights]

    @property
    def facts(self) -> dict[str, Any]:
        """What is to be known of the only network."""
        return self.networks[None]


def plan_network(
    program: Program,
    target: CpuTarget,
    tune: TuneOptions | None = None,
    progress: Progress | None = None,
) -> Network:
    """Return what `emit` compiles.

    Args:
        program: the integer dialect.
        target: the CPU.
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
    return Network(program, plan)


def emit(networks: Mapping[str | None, Network], batch: int = 1) -> TvmModule:
    """Return the module of `networks`, by pair, at a fixed batch size of images per call."""
    return _Emitter(networks, batch).module()


def emit_tvm(
    program: Program,
    target: CpuTarget,
    batch: int = 1,
    tune: TuneOptions | None = None,
    progress: Progress | None = None,
) -> TvmModule:
    """Return the module of `program` alone; arguments and errors as `plan_network`, `emit`."""
    return emit({None: plan_network(program, target, tune, progress)}, batch)


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

    def __init__(self, networks: Mapping[str | None, Network], batch: int) -> None:
        self._networks, self._batch = networks, batch
        self._functions: dict[Any, Any] = {}
        self._names: dict[Kernel, Any] = {}
        self._constants = Constants()
        self._weights = narrow_weights(networks)
        # The functions of networks that differ in numbers only.
        self._shared: dict[Any, Any] = {}

    def module(self) -> TvmModule:
        """Return the module."""
        for pair, network in self._networks.items():
            self._add(network.plan.steps, self._weights.get(pair))
        made = {weights.name: weights for weights in self._weights.values()}
        for weights in made.values():
            self._add(weights.steps.values(), None)
        builder = relax.BlockBuilder(tvm.IRModule(self._functions))
        blob = relax.const(self._constants.array())
        for name, weights in made.items():
            called = builder.add_func(self._maker(weights, f"qtool_{name}"), f"qtool_{name}")
            with builder.function(name, [], attrs={"global_symbol": name}):
                result = relax.TensorType((1, weights.bytes), "uint8")
                builder.emit_func_output(builder.emit(relax.call_tir(called, [blob], result)))
        for pair, network in self._networks.items():
            stored = Stored(self._constants, self._weights.get(pair))
            constants = [blob, *self._places(network, stored)]
            for name, trace in zip(function_names(pair), (False, True), strict=True):
                called = self._called(builder, network, f"qtool_{name}", trace, stored)
                self._relax(builder, name, called, network, constants, trace, stored)
        facts = {pair: self._facts(network) for pair, network in self._networks.items()}
        return TvmModule(builder.get(), facts, self._constants.size, self._weights)

    def _add(self, steps: Iterable[Step], weights: Weights | None) -> None:
        """Add kernels and constants of `steps`, but for what is made."""
        for step in steps:
            self._kernel(step.kernel)
            for array in step.constants:
                if weights is None or weights.place(array) is None:
                    self._constants.add(array)

    def _kernel(self, kernel: Kernel) -> Any:
        """Return the function of a kernel, one for equal specifications."""
        if kernel not in self._names:
            name = f"k{len(self._names)}_{kernel.name()}"
            reference = tvm.ir.GlobalVar(name)
            self._functions[reference] = kernel.build(name)
            self._names[kernel] = reference
        return self._names[kernel]

    def _maker(self, weights: Weights, name: str) -> Any:
        """Return the function that makes weights."""
        with IRBuilder() as builder, T.prim_func(s_tir=False):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            blob = self._blob()
            made = T.arg("made", T.buffer((1, weights.bytes), "uint8", layout=None))
            offsets = {MADE: 0}
            stored = Stored(self._constants, None)
            pointers = Pointers(made, made, made, blob, None, None, stored, 0, 0, offsets)
            self._calls(weights.steps.values(), pointers, trace=False)
        return builder.get()

    def _blob(self) -> Any:
        """Declare the argument of all constants."""
        return T.arg("constants", T.buffer((self._constants.size,), "uint8", layout=None))

    def _places(self, network: Network, stored: Stored) -> list[Any]:
        """Return where constants are, an argument of a function of several networks."""
        if len(self._networks) == 1:
            return []
        places = [stored.place(a) for step in network.plan.steps for a in step.constants]
        return [relax.const(np.array(places, np.int32))]

    def _called(
        self, builder: Any, network: Network, name: str, trace: bool, stored: Stored
    ) -> Any:
        """Return the function that calls all kernels, one for networks that it suits."""
        steps = tuple(
            (step.kernel, step.inputs, step.output, tuple(map(stored.made, step.constants)))
            for step in network.plan.steps
        )
        made = None if stored.weights is None else stored.weights.bytes
        offsets = tuple((network.apart if trace else network.arena).items())
        image = (network.program.input_shape, network.program.input_kind)
        key = (steps, offsets, image, self._result(network, trace), network.arena_bytes, made)
        if key not in self._shared:
            function = self._net(network, name, trace, stored)
            self._shared[key] = builder.add_func(function, name)
        return self._shared[key]

    def _net(self, network: Network, name: str, trace: bool, stored: Stored) -> Any:
        """Return the function that calls all kernels."""
        program, images = network.program, self._batch
        shape = (images, *program.input_shape)
        result, kind = self._result(network, trace)
        with IRBuilder() as builder, T.prim_func(s_tir=False):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            x = T.arg("x", T.buffer(shape, program.input_kind, layout=None))
            blob = self._blob()
            made, places = self._others(network, stored)
            y = T.arg("y", T.buffer(result, kind, layout=None))
            # An argument: TVM would shrink an allocation to the bytes that it sees in use.
            memory = (
                y
                if trace
                else T.arg("arena", T.buffer((1, network.arena_bytes), "uint8", layout=None))
            )
            with T.serial(0, images) as image:
                # A trace has memory for every image; the arena is the same for all.
                offsets, row = (network.apart, image) if trace else (network.arena, 0)
                pointers = Pointers(
                    x, y, memory, blob, made, places, stored, image, row, offsets
                )
                self._calls(network.plan.steps, pointers, trace)
        return builder.get()

    def _others(self, network: Network, stored: Stored) -> tuple[Any, Any]:
        """Declare what is made and places of constants; None where there are none."""
        made = places = None
        if len(self._networks) > 1:
            count = sum(len(step.constants) for step in network.plan.steps)
            places = T.arg("places", T.buffer((count,), "int32", layout=None))
        if stored.weights is not None:
            size = stored.weights.bytes
            made = T.arg("weights", T.buffer((1, size), "uint8", layout=None))
        return made, places

    def _result(self, network: Network, trace: bool) -> tuple[tuple[int, ...], str]:
        """Return shape and type of what a function returns."""
        if trace:
            return (self._batch, network.trace_bytes), "uint8"
        return (self._batch, *network.result_shape), "float32"

    def _calls(self, steps: Iterable[Step], pointers: Pointers, trace: bool) -> None:
        number = 0
        for step in steps:
            first, number = number, number + len(step.constants)
            if trace and step.output.tensor == OUTPUT:
                continue
            args = [pointers.of(operand) for operand in (*step.inputs, step.output)]
            args += [pointers.constant(a, first + i) for i, a in enumerate(step.constants)]
            T.evaluate(T.Call(self._names[step.kernel], args, ret_ty="int32"))

    def _relax(
        self, builder: Any, name: str, function: Any, network: Network,
        constants: Sequence[Any], trace: bool, stored: Stored,
    ) -> None:  # fmt: skip
        program = network.program
        x = relax.Var(
            "input", relax.TensorType((self._batch, *program.input_shape), program.input_kind)
        )
        given = [x]
        if stored.weights is not None:
            kind = relax.TensorType((1, stored.weights.bytes), "uint8")
            given.append(relax.Var("weights", kind))
        with builder.function(name, given, attrs={"global_symbol": name}):
            with builder.dataflow():
                results = [relax.TensorType(*self._result(network, trace))]
                if not trace:
                    results.append(relax.TensorType((1, network.arena_bytes), "uint8"))
                call = builder.emit(
                    relax.call_tir(function, [x, *constants, *given[1:]], results)
                )
                result = builder.emit_output(call[0] if len(results) > 1 else call)
            builder.emit_func_output(result)

    def _float_tensors(self, plan: Plan) -> list[str]:
        """Return the tensors that some kernel's function does not take as codes."""
        found = []
        for step in plan.steps:
            operands = (*step.inputs, step.output)
            parameters = self._functions[self._names[step.kernel]].params
            for operand, parameter in zip(operands, parameters, strict=False):
                kind = str(parameter.ty.element_type)
                if operand.tensor in plan.tensors and kind != "uint8":
                    found.append(operand.tensor)
        return found

    def _facts(self, network: Network) -> dict[str, Any]:
        plan = network.plan
        constants = [array for step in plan.steps for array in step.constants]
        uses: dict[str, list[str]] = {}
        for step in plan.steps:
            uses.setdefault(self._names[step.kernel].name_hint, []).append(step.layer)
        return {
            "tensors": list(plan.tensors),
            "fused_tensors": list(plan.fused),
            "trace": {
                name: _address(
                    network.apart[plan.alias(name)], plan.layouts[plan.alias(name)], shape
                )
                for name, shape in network.program.shapes().items()
                if name in plan.tensors
            },
            "arena_bytes": network.arena_bytes,
            "largest_pair_bytes": plan.largest_pair,
            "kernels": [
                {"function": name, "layers": layers, "count": len(layers)}
                for name, layers in uses.items()
            ],
            "fallbacks": list(plan.fallbacks),
            "packed_weights": list(plan.packed_weights),
            "weight_blob_bytes": Constants(constants).size,
            "float_tensors": self._float_tensors(plan),
        }


def _address(offset: int, layout: Layout, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return where a tensor's codes are in the memory that ``trace`` returns."""
    return {
        "offset": offset + layout.origin, "shape": list(shape),
        "strides": layout.strides(shape),
    }  # fmt: skip
