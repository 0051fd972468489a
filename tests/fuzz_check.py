"""One random network in every runtime and form; a mismatch as a sentence, made small."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from fuzz import STEPS, images, make
from fuzz_floats import ISLAND_STEPS, has_float_output, leave_output_float
from gpu_kernels import PRODUCTS, SerialRuntime
from kernel_calls import target_of

from passes.emit.onnx.onnx_qdq import emit_onnx_qdq
from passes.emit.onnx.onnx_qop import emit_onnx_qop
from passes.emit.tvm.compile import compile_program
from passes.pipelines import import_qdq, lower
from passes.raw_pixels import UseRawPixels
from qtool.core.dialect import Program, read_program
from qtool.core.selection import Selection
from runtimes.compare import Parity
from runtimes.ort import OrtRuntime
from runtimes.reference import ReferenceRuntime
from runtimes.tvm import TvmRuntime

# Given for a vector unit: networks with float islands, which only ONNX Runtime runs.
ISLANDS = "islands"
FORMS = {"qdq": emit_onnx_qdq, "qop": emit_onnx_qop}


def lowered(
    seed: int, steps: int | None = None, islands: bool = False
) -> tuple[ir.Model, tuple[int, ...], bool]:
    """Return network `seed` in the integer dialect, its image shape, and whether it is raw."""
    model, shape, raw = make(seed, steps, ISLAND_STEPS if islands else STEPS)
    dialect = lower(model, Selection(), allow_float=islands)
    if has_float_output(seed):
        leave_output_float(dialect)
    if raw:
        UseRawPixels()(dialect)
    return dialect, shape, raw


def check(seed: int, steps: int | None = None, unit: str = "") -> str:
    """Return what differs for network `seed`, cut after `steps` steps; "" if nothing does.

    With the name of a vector unit, only TVM's code for that unit is compared; with a key of
    `PRODUCTS`, only GPU kernels, with loops for threads; with `ISLANDS`, only ONNX's forms.
    """
    dialect, shape, raw = lowered(seed, steps, unit == ISLANDS)
    x = images(seed, shape, batch := 1 + seed % 3)
    if raw:
        x = np.clip(x * 255, 0, 255).astype(np.uint8)
    program = read_program(dialect)
    reference = ReferenceRuntime(program)
    expected, logits = reference.intermediates(x), reference.run(x)
    with tempfile.TemporaryDirectory() as folder:
        runtimes: list[tuple[str, Any]] = []
        for form in FORMS if unit in ("", ISLANDS) else ():
            path = Path(folder) / f"{form}.onnx"
            ir.save(FORMS[form](dialect, {}), path)
            if _digest(path) != program.digest():
                return f"seed {seed}: {form} is read back as another program"
            runtimes.append((form, OrtRuntime(path, list(expected))))
            if found := _floats(runtimes[-1][1], program):
                return f"seed {seed}: {form} runs {found} in floating point"
        fused: tuple[str, ...] = ()
        if unit in PRODUCTS:
            serial = SerialRuntime(program, batch, unit)
            fused = serial.facts["fused_tensors"]
            runtimes.append((f"tvm cuda {unit}", serial))
        elif unit != ISLANDS:
            library = Path(folder) / "model.so"
            compiled = compile_program(program, target_of(unit) if unit else None, batch)
            library.write_bytes(compiled.data)
            fused = compiled.module.facts["fused_tensors"]
            runtimes.append((f"tvm {unit}".strip(), TvmRuntime(library)))
        for form, runtime in runtimes:
            parity = Parity()
            parity.add_all(
                expected, runtime.intermediates(x), fused if form.startswith("tvm") else ()
            )
            if parity.mismatched:
                return _describe(seed, form, parity, program)
            if not np.array_equal(runtime.run(x), logits):
                return f"seed {seed}: {form} has other logits than its own trace"
    return ""


def _floats(runtime: OrtRuntime, program: Program) -> dict[str, int]:
    """Return what ONNX Runtime computes in floating point outside the islands."""
    islands = runtime.island_ops([op.grid for op in program.islands()])
    return dict(runtime.float_ops() - islands)


def _digest(path: Path) -> str:
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    return read_program(import_qdq(ir.from_proto(proto))).digest()


def _describe(seed: int, form: str, parity: Parity, program: Program) -> str:
    first = parity.first_divergence or {}
    op = next(op for op in program.ops if op.output == first["tensor"])
    return (
        f"seed {seed}, {form}: {parity.mismatched} of {parity.compared} differ, first "
        f"{first}: {op}"
    )


def minimal(seed: int, unit: str = "") -> str:
    """Return the shortest network of `seed` that fails, as a sentence and a command."""
    for steps in range(12):
        try:
            found = check(seed, steps, unit)
        except Exception as error:  # whatever it is, it is the reproduction
            found = f"{type(error).__name__}: {error}"
        if found:
            return f"{found}\nreproduce: python tests/fuzz.py {seed} {steps} {unit}".rstrip()
    return f"seed {seed}: fails only uncut: python tests/fuzz.py {seed}"
