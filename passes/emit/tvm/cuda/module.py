"""A program -> a TVM module whose kernels run on a GPU: Relax functions that call TIR.

``main`` (images -> float results) calls a kernel for each operator; tensors that are not alive
together share memory. ``trace`` calls the same kernels and returns every integer tensor as it
is stored. A GPU's queue hides what a call costs the virtual machine, so that there is no
function around all kernels as on CPUs.
"""

from typing import Any

from tvm import relax

from passes.emit.tvm.cpu.plan.steps import Kernel
from passes.emit.tvm.cpu.tvm_module import TvmModule
from passes.emit.tvm.cuda.plan import OUTPUT, Plan, Step, make_plan
from qtool.core.dialect import Program
from qtool.core.sealed import function_names


def emit_cuda(program: Program, batch: int, mma: bool) -> TvmModule:
    """Return the module of `program`; its facts lack "arena_bytes", which compiling plans.

    Arguments and errors as `make_plan`.
    """
    emitter = _Emitter(program, make_plan(program, batch, mma), batch)
    module, facts = emitter.module(), emitter.facts()
    return TvmModule(module, {None: facts}, int(facts["weight_blob_bytes"]), {})


class _Emitter:
    """Writes the functions of a module."""

    def __init__(self, program: Program, plan: Plan, batch: int) -> None:
        self._program, self._plan, self._batch = program, plan, batch
        self._names: dict[Kernel, Any] = {}
        self._constants: dict[int, list[Any]] = {}
        self._builder = relax.BlockBuilder()

    def module(self) -> Any:
        """Return the module."""
        for name, trace in zip(function_names(), (False, True), strict=True):
            self._function(name, trace)
        return self._builder.get()

    def _kernel(self, kernel: Kernel) -> Any:
        """Return the function of a kernel, one for equal specifications."""
        if kernel not in self._names:
            name = f"k{len(self._names)}_{kernel.name()}"
            self._names[kernel] = self._builder.add_func(kernel.build(name), name)
        return self._names[kernel]

    def _function(self, name: str, trace: bool) -> None:
        """Write a Relax function that calls all kernels."""
        program, builder = self._program, self._builder
        shape = (self._batch, *program.input_shape)
        x = relax.Var("input", relax.TensorType(shape, program.input_kind))
        made = {program.input_name: x}
        with builder.function(name, [x], attrs={"global_symbol": name}):
            with builder.dataflow():
                for step in self._plan.steps:
                    if not (trace and step.output == OUTPUT):
                        made[step.output] = self._call(step, made)
                if trace:
                    tensors = dict.fromkeys(map(self._plan.alias, self._plan.tensors))
                    result = builder.emit_output(relax.Tuple([made[t] for t in tensors]))
                else:
                    result = builder.emit_output(made[OUTPUT])
            builder.emit_func_output(result)

    def _call(self, step: Step, made: dict[str, Any]) -> Any:
        function = self._kernel(step.kernel)
        result = self._builder.get()[function].params[-1].ty
        kind = relax.TensorType(tuple(map(int, result.shape)), str(result.dtype))
        inputs = [made[name] for name in step.inputs]
        return self._builder.emit(
            relax.call_tir(function, [*inputs, *self._stored(step)], kind)
        )

    def _stored(self, step: Step) -> list[Any]:
        """Return a step's constants, which ``main`` and ``trace`` share."""
        key = id(step)
        if key not in self._constants:
            self._constants[key] = [relax.const(array) for array in step.constants]
        return self._constants[key]

    def facts(self) -> dict[str, Any]:
        """Return what is to be known of the module."""
        plan, uses = self._plan, dict[str, list[str]]()
        for step in plan.steps:
            uses.setdefault(self._names[step.kernel].name_hint, []).append(step.layer)
        constants = {array.tobytes() for step in plan.steps for array in step.constants}
        return {
            "tensors": list(plan.tensors),
            "fused_tensors": list(plan.fused),
            "trace": self._places(),
            "largest_pair_bytes": plan.largest_pair,
            "kernels": [
                {"function": name, "layers": layers, "count": len(layers)}
                for name, layers in uses.items()
            ],
            "fallbacks": list(plan.fallbacks),
            "packed_weights": [],
            "weight_blob_bytes": sum(map(len, constants)),
            "float_tensors": self._float_tensors(),
        }

    def _places(self) -> dict[str, Any]:
        """Return where each tensor is in an image's part of all that ``trace`` returns."""
        plan, shapes, starts, end = self._plan, self._program.shapes(), dict[str, int](), 0
        for name in dict.fromkeys(map(plan.alias, plan.tensors)):
            starts[name], end = end, end + plan.layouts[name].bytes
        return {
            name: {
                "offset": starts[plan.alias(name)], "shape": list(shapes[name]),
                "strides": plan.layouts[plan.alias(name)].strides(shapes[name]),
            }
            for name in plan.tensors
        }  # fmt: skip

    def _float_tensors(self) -> list[str]:
        """Return the tensors that some kernel does not take as codes."""
        module, found = self._builder.get(), []
        for step in self._plan.steps:
            parameters = module[self._names[step.kernel]].params
            operands = zip(step.inputs, parameters, strict=False)
            for name, parameter in (*operands, (step.output, parameters[-1])):
                if name in self._plan.layouts and str(parameter.ty.dtype) != "uint8":
                    found.append(name)
        return found
