"""Integer dialect -> a TVM Relax module.

The module has two functions: ``main`` (float image -> float logits) and ``trace`` (the same
input -> every integer tensor). They call the same kernels, one per dialect operator, so what a
check sees is what runs.
"""

from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax, te

from passes.emit.te_kernels import dequantize, kernel
from passes.emit.te_moves import Kernel
from qtool.dialect import FloatGemm, Op, Program, Quantize
from qtool.errors import UnsupportedError


def emit_relax(program: Program, batch: int = 1) -> tvm.IRModule:
    """Return the IRModule of `program` at a fixed batch size.

    Args:
        program: the integer dialect.
        batch: images per call.

    Raises:
        UnsupportedError: a float island; names it.
    """
    for island in program.islands():
        raise UnsupportedError(
            f"layer {island.name}: {', '.join(island.operators)} in floating point "
            "(--allow-float), which TVM kernels do not have; --target onnx can hold it"
        )
    builder = relax.BlockBuilder()
    emitter = _Emitter(builder, program, batch)
    emitter.function("main", trace=False)
    emitter.function("trace", trace=True)
    return builder.get()


@dataclass
class _Emitter:
    """Adds each operator's kernel to the module once, and calls to it."""

    builder: relax.BlockBuilder
    program: Program
    batch: int
    kernels: dict[str, tuple[Any, list[Any]]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes = self.program.shapes()

    def function(self, name: str, trace: bool) -> None:
        """Add `name`: the program, returning the output or every integer tensor."""
        program, builder = self.program, self.builder
        x = relax.Var(
            "input", relax.TensorType((self.batch, *program.input_shape), program.input_kind)
        )
        with builder.function(name, [x]):
            with builder.dataflow():
                tensors: dict[str, Any] = {program.input_name: x}
                for op in program.ops:
                    tensors[op.output] = self._call(op, [tensors[n] for n in op.inputs])
                if trace:
                    result = relax.Tuple([tensors[name] for name in program.tensors()])
                elif program.float_output:
                    result = tensors[program.output]
                else:
                    result = self._dequantize(tensors[program.output])
                output = builder.emit_output(result)
            builder.emit_func_output(output)

    def _call(self, op: Op, inputs: list[Any]) -> Any:
        if op.output not in self.kernels:
            shapes = [(self.batch, *self.shapes[name]) for name in op.inputs]
            kind = "float32" if isinstance(op, Quantize) else "uint8"
            self.kernels[op.output] = self._kernel(op.output, kernel(op), shapes, kind)
        function, constants = self.kernels[op.output]
        kind = "float32" if isinstance(op, FloatGemm) else "uint8"
        out = relax.TensorType((self.batch, *op.shape), kind)
        return self.builder.emit(relax.call_tir(function, [*inputs, *constants], out))

    def _dequantize(self, codes: Any) -> Any:
        build: Kernel = ([], dequantize(self.program.output_grid))
        shape = (self.batch, *self.shapes[self.program.output])
        function, _ = self._kernel("output", build, [shape], "uint8")
        return self.builder.emit(
            relax.call_tir(function, [codes], relax.TensorType(shape, "float32"))
        )

    def _kernel(
        self, name: str, built: Kernel, shapes: list[tuple[int, ...]], kind: str
    ) -> tuple[Any, list[Any]]:
        """Add a kernel to the module; return its function and its constants."""
        arrays, build = built
        inputs = [te.placeholder(shape, kind, f"x{i}") for i, shape in enumerate(shapes)]
        inputs += [
            te.placeholder(a.shape, str(a.dtype), f"c{i}") for i, a in enumerate(arrays)
        ]
        function = te.create_prim_func([*inputs, build(*inputs)])
        symbol = f"k{len(self.kernels)}_" + "".join(c if c.isalnum() else "_" for c in name)
        reference = self.builder.add_func(function.with_attr("global_symbol", symbol), symbol)
        return reference, [relax.const(a) for a in arrays]
