"""A dialect graph's answers, from the very ONNX file that it becomes, in memory."""

import onnx_ir as ir

from passes.emit.onnx.onnx_file import FORMS, compact
from qtool.core.dialect import read_program
from qtool.witness.origin import Answers
from runtimes.base import Inputs
from runtimes.isa import read_isa
from runtimes.ort import OrtRuntime
from runtimes.reference import ReferenceRuntime


def answers_of(dialect: ir.Model, x: Inputs, form: str = "qdq") -> Answers:
    """Return the output and every integer tensor for `x`.

    ONNX Runtime executes what `dialect` is in a file, in QDQ or operator form. Where its
    products saturate the reference does: the CPU is not what is in question.
    """
    program = read_program(dialect)
    if read_isa().saturates:
        reference = ReferenceRuntime(program)
        return Answers(reference.intermediates(x), reference.run(x))
    data = compact(FORMS[form](dialect, {})).SerializeToString()
    runtime = OrtRuntime.from_bytes(data, program.tensors())
    return Answers(runtime.intermediates(x), runtime.run(x))
