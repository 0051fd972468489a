"""An artifact and its origin, both after the same images -> figures of every tensor."""

from collections.abc import Iterator, Mapping

import numpy as np

from passes.twins import Key, Twin
from qtool.core.dialect import Island, Op, Program
from qtool.witness.figures import differing, largest_steps, real, snr_db
from qtool.witness.origin import Answers, Known
from qtool.witness.record import Differing, TensorFigures
from runtimes.base import Floats
from runtimes.compare import output_codes

OUTPUT = "output"


def compare(
    program: Program, twins: Mapping[Key, Twin], known: Known, answers: Answers
) -> tuple[TensorFigures, ...]:
    """Return the figures of all that origin and artifact both know, in execution order.

    Args:
        program: the artifact's, or what it was compiled from.
        twins: which integer tensor stands for which of the origin's.
        known: the origin's values.
        answers: the artifact's; tensors that it does not write to memory are absent.
    """
    keys = _by_tensor(twins, known, answers)
    islands = _behind_islands(program)
    ops = {op.output: op for op in program.ops}
    found = []
    for tensor in (op.output for op in program.ops):
        if tensor not in keys:
            continue
        values = real(answers.tensors[tensor], (grid := twins[keys[tensor][0]].grid))
        floats = next((known.floats[key] for key in keys[tensor] if key in known.floats), None)
        exact = next((known.exact[key] for key in keys[tensor] if key in known.exact), None)
        codes = None if exact is None else differing(exact, answers.tensors[tensor], grid)
        found.append(TensorFigures(
            tensor, *_between(ops, tensor, keys),
            *_distance(floats, values, float(grid.scale)), codes, tensor in islands,
        ))  # fmt: skip
    return (*found, *_output(program, known, answers, keys))


def _output(
    program: Program, known: Known, answers: Answers, keys: Mapping[str, object]
) -> Iterator[TensorFigures]:
    """Yield the figures of the output, where the origin has one."""
    if known.output is None and known.exact_output is None:
        return
    grid, codes = program.output_grid, None
    if known.exact_output is not None and not program.float_output:
        integers = output_codes(answers.output, float(grid.scale), grid.zero_point)
        codes = differing(known.exact_output, integers, grid)
    step = 0.0 if program.float_output else float(grid.scale)
    made: tuple[tuple[str, ...], tuple[str, ...]] = ((program.output,), ())
    if program.output not in keys:
        made = _between({op.output: op for op in program.ops}, program.output, keys)
    yield TensorFigures(
        OUTPUT, *made, *_distance(known.output, answers.output, step), codes,
        program.output in _behind_islands(program),
    )  # fmt: skip


def _distance(expected: Floats | None, got: Floats, step: float) -> tuple[float | None, float]:
    """Return ratio and largest difference; of what the origin does not have, nothing."""
    if expected is None:
        return None, 0.0
    return snr_db(expected, got, step), largest_steps(expected, got, step)


def _by_tensor(
    twins: Mapping[Key, Twin], known: Known, answers: Answers
) -> dict[str, list[Key]]:
    """Return under which keys the origin knows a tensor that the artifact has."""
    keys: dict[str, list[Key]] = {}
    for key, twin in twins.items():
        if (key in known.floats or key in known.exact) and twin.tensor in answers.tensors:
            keys.setdefault(twin.tensor, []).append(key)
    return keys


def _behind_islands(program: Program) -> set[str]:
    """Return the tensors that islands compute, and those computed from them."""
    found: set[str] = set()
    for op in program.ops:
        if isinstance(op, Island) or found & {*op.inputs}:
            found.add(op.output)
    return found


def _between(
    ops: Mapping[str, Op], tensor: str, known: Mapping[str, object]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the known tensors before `tensor`, and the operators from there to it."""
    names, inputs = list[str](), list[str]()
    waiting, seen = [tensor], {tensor}
    while waiting:
        op = ops.get(waiting.pop())
        if op is None:
            continue
        names.append(op.name)
        for source in op.inputs:
            if source in seen:
                continue
            seen.add(source)
            (inputs if source in known else waiting).append(source)
    return tuple(inputs), tuple(names[::-1])


def total(figures: tuple[TensorFigures, ...], behind_islands: bool) -> Differing:
    """Return the sum of what differs, behind islands or elsewhere."""
    counts = [f.codes for f in figures if f.codes and f.behind_island == behind_islands]
    return Differing(sum(c.mismatched for c in counts), sum(c.compared for c in counts))


def agreement(one: Floats | None, other: Floats) -> float | None:
    """Return for how many predictions the largest output is the same one, in percent."""
    if one is None or one.shape != other.shape:
        return None
    return 100 * float(np.mean(one.argmax(1) == other.argmax(1)))
