"""Program -> Relay: a function for the output, one for every integer tensor, parameters.

    def @main(%x: Tensor[(1, 3, 32, 32), float32], %conv1_weight: ...)

Both texts are the same operators on the same parameters; `trace` returns the tensors, in the
order of `Program.tensors`, as a tuple.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from passes.emit.relay import operators, qnn
from passes.emit.relay.moves import Adapter
from passes.emit.relay.text import TensorType, Text, identifier, tuple_of
from qtool.core.dialect import Grid, Op, Program


@dataclass(frozen=True)
class Relay:
    """A network as Relay text.

    Args:
        main: image -> float output.
        trace: image -> every integer tensor.
        parameters: of both, by name.
    """

    main: str
    trace: str
    parameters: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Form:
    """How operators are spelled: a function each, and one for the output's floats."""

    operators: Mapping[type[Op], Adapter]
    dequantized: Callable[[Text, str, Grid], str]


EXACT = Form(operators.OPERATORS, operators.dequantized)
QNN = Form(qnn.QNN, qnn.dequantized)


def emit(program: Program, form: Form = EXACT, batch: int = 1) -> Relay:
    """Return `program` in Relay.

    Args:
        program: the integer dialect.
        form: how operators are spelled.
        batch: images a call.

    Raises:
        UnsupportedError: float islands.
    """
    kind = TensorType((batch, *program.input_shape), program.input_kind)
    shapes = program.shapes()
    text = Text(identifier(program.input_name), kind, shapes)
    results = {program.input_name: f"%{text.input}"}
    for op in program.ops:
        text.note(f"{op.name}: {type(op).__name__}")
        results[op.output] = adapter(form, op)(op, text, [results[n] for n in op.inputs])
    traced, types = tuple_of(
        [results[name] for name in program.tensors()],
        [TensorType((batch, *shapes[name]), "uint8") for name in program.tensors()],
    )
    trace = text.function(traced, types)
    output = results[program.output]
    if not program.float_output:
        text.note(f"{program.output_name}: floats")
        output = form.dequantized(text, output, program.output_grid)
    returned = TensorType((batch, *shapes[program.output]), "float32")
    return Relay(text.function(output, str(returned)), trace, text.parameters)


def adapter(form: Form, op: Op) -> Adapter:
    """Return what spells `op`."""
    found = form.operators.get(type(op))
    if found is None:
        raise TypeError(f"{op.name}: {type(op).__name__} has no Relay form")
    return found
