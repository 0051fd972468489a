"""What an export or import is about to write, compared with its origin."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir

from passes.emit.base import Note, Target
from passes.emit.facts import describe
from passes.emit.onnx.target import OnnxTarget
from passes.twins import twins_of
from qtool.core.dialect import read_program
from qtool.core.errors import UserError
from qtool.core.selection import Selection, read_selection
from qtool.export.export import ExportOptions
from qtool.export.foreign_import import ImportOptions
from qtool.runs.run import Run
from qtool.settings.ptq import PtqConfig
from qtool.witness.answers import answers_of
from qtool.witness.images import Asked, Chosen, images_of_run, inputs_of_file
from qtool.witness.of_file import REQUIRED, known_of_file
from qtool.witness.origin import Answers, Known
from qtool.witness.record import WitnessRecord
from qtool.witness.seen import Seen
from qtool.witness.verdict import Required, Setting, judge, require, sentence, shown

ADVICE = (
    "where that is rounding (few calibration images, inputs unlike its own: --data), "
    "--accept-differences writes it all the same"
)
# What may differ from the fake-quantized network, as a share of a tensor's integers: nothing.
DIFFERING = 0.0
# Of a network quantized after training, at 8 bits, on images that it was calibrated for. No
# right layer below 20 dB lost more than 3 dB at once there (10 networks; 26 on random images);
# a result that is off by a third of itself is at 9.5 dB.
FLOOR_DB = 20.0
_FULL_BITS = 8


@dataclass(frozen=True)
class Witness:
    """What looks at a dialect graph before it is written; its line is what it found.

    Args:
        look: returns the record, None where nothing could be compared.
        note: is told what was found.
        accept: differences are said, and not refused.
    """

    look: Callable[[ir.Model], WitnessRecord | None]
    note: Note
    accept: bool = False

    def __call__(self, dialect: ir.Model) -> None:
        """Compare `dialect` with its origin.

        Raises:
            UserError: it is not what the origin computes; names the first tensor.
        """
        record = self.look(dialect)
        if record is None:
            return
        if not self.accept:
            require(record, ADVICE)
        self.note(f"witness: {sentence(record)}")
        if record.fallen:
            self.note(f"accepted: {shown(record)}")


@dataclass(frozen=True)
class RunLook:
    """Compares a run's dialect graph with its torch networks.

    Args:
        run: the origin.
        bits: what `read_selection` reads; None for the run's own.
        form: of the ONNX file that is executed.
        asked: images.
        note: is told why nothing was compared.
    """

    run: Run
    bits: str | None
    form: str
    asked: Asked
    note: Note

    def __call__(self, dialect: ir.Model) -> WitnessRecord | None:
        """Return the record; None without torch."""
        program, seen = read_program(dialect), Seen(self.run)
        chosen = images_of_run(self.run, self.asked)
        key = seen.key(program.digest(), self.form, chosen.text, chosen.digest)
        known_record = seen.find(key)
        if known_record is not None:
            return known_record
        if find_spec("torch") is None:
            self.note("no witness: comparing with the run's network needs torch")
            return None
        selection = self.run.selection() if self.bits is None else read_selection(self.bits)
        answers = answers_of(dialect, chosen.fed(program.input_kind), self.form)
        record = judge_run(self.run, selection, dialect, chosen, answers)
        seen.keep(key, record)
        return record


def judge_run(
    run: Run, selection: Selection, dialect: ir.Model, chosen: Chosen, answers: Answers
) -> WitnessRecord:
    """Return the record of `answers`, an artifact's of `run` at `selection`, to `chosen`.

    Args:
        run: the origin.
        selection: the artifact's bits.
        dialect: what the artifact was made from.
        chosen: the images.
        answers: the artifact's.
    """
    from qtool.witness.of_run import known_of_run

    program = read_program(dialect)
    known = known_of_run(run, selection, chosen.fed("float32"))
    ptq = isinstance(run.config, PtqConfig)
    if not ptq:  # trained on: what its layers read is no approximation of the float network's
        known = replace(known, floats={})
    widths = [cost.bits for cost in program.layer_costs()]
    narrowest = min([run.config.glue_bits, *(min(b.weight, b.activation) for b in widths)])
    is_judged = ptq and narrowest >= _FULL_BITS and chosen.are_real
    floor = FLOOR_DB if is_judged else None
    setting = Setting(
        f"run {run.folder}", chosen.text, len(chosen.values), Required(floor, DIFFERING)
    )
    return judge(setting, program, twins_of(dialect), known, answers)


@dataclass(frozen=True)
class FileLook:
    """Compares an imported dialect graph with the original file.

    Args:
        path: the original.
        form: of the ONNX file that is executed.
        asked: images.
        note: is told why nothing was compared.
    """

    path: Path
    form: str
    asked: Asked
    note: Note

    def __call__(self, dialect: ir.Model) -> WitnessRecord | None:
        """Return the record; None where ONNX Runtime cannot run the original."""
        program = read_program(dialect)
        chosen = inputs_of_file(describe(program), self.asked)
        x = chosen.fed(program.input_kind)
        try:
            known = known_of_file(self.path, dialect, x)
        except UserError as error:
            self.note(f"no witness: {error}")
            return None
        return judge_file(self.path, dialect, chosen, known, answers_of(dialect, x, self.form))


def judge_file(
    path: Path, dialect: ir.Model, chosen: Chosen, known: Known, answers: Answers
) -> WitnessRecord:
    """Return the record of `answers` beside what the original `path` computes."""
    setting = Setting(str(path), chosen.text, len(chosen.values), REQUIRED)
    return judge(setting, read_program(dialect), twins_of(dialect), known, answers)


def witness_of_run(
    folder: Path, options: ExportOptions, asked: Asked, note: Note, accept: bool
) -> Witness:
    """Return what compares an export of the run in `folder` with its networks.

    Raises:
        UserError: what `Run.open` does.
    """
    form = _form(options.target)
    look = RunLook(Run.open(folder), options.bits, form, asked, note)
    return Witness(look, note, accept)


def witness_of_file(
    path: Path, options: ImportOptions, asked: Asked, note: Note, accept: bool
) -> Witness:
    """Return what compares an import of `path` with that file."""
    return Witness(FileLook(path, _form(options.target), asked, note), note, accept)


def _form(target: Target) -> str:
    """Return the form in which ONNX Runtime is given a model: the target's, if it has one."""
    return target.format if isinstance(target, OnnxTarget) else "qdq"
