"""Deployed files beside where they come from: ``qtool check --original FILE|RUN``.

What a runtime answers to the first images of a check is compared with the run's torch
networks, or with the foreign file in ONNX Runtime (`qtool.witness`). `--reference RUN` says
instead how accurate the run's networks are on the whole test set.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from passes.emit.facts import describe
from passes.raw_pixels import UseRawPixels
from qtool.checking.collect import Checked, fed
from qtool.checking.file_layers import selection_in_run
from qtool.checking.models import Model
from qtool.core.dialect import read_program
from qtool.core.errors import UnsupportedError, UserError
from qtool.data.images import DataSet
from qtool.data.random_inputs import RandomInputs
from qtool.export.adaptive import RunSource
from qtool.export.export import integer_model_at
from qtool.export.foreign_import import read_foreign
from qtool.runs.run import Run
from qtool.witness.images import Chosen
from qtool.witness.of_file import known_of_file
from qtool.witness.origin import Answers
from qtool.witness.record import WitnessRecord
from qtool.witness.witness import judge_file, judge_run

IMAGES = 8


@dataclass(frozen=True)
class Origins:
    """Where the files of a check come from.

    Args:
        reference: the run whose torch networks are run on the whole test set.
        original: the run, or the imported file, that the files are compared with.
        float_file: the run's float network as ONNX, where it is exported already.
    """

    reference: Path | None = None
    original: Path | None = None
    float_file: Path | None = None

    @property
    def run(self) -> Path | None:
        """The run."""
        is_run = self.original is not None and self.original.is_dir()
        return self.reference or (self.original if is_run else None)

    @property
    def file(self) -> Path | None:
        """The imported file."""
        is_file = self.original is not None and not self.original.is_dir()
        return self.original if is_file else None

    def check(self) -> None:
        """Refuse an original that is not there: before anything runs."""
        if self.original is not None and not self.original.exists():
            raise UserError(f"--original {self.original}: no such run directory or file")


def compare_original(
    model: Model, checked: Checked, data: DataSet | RandomInputs, origin: Path
) -> WitnessRecord:
    """Return the record of the first runtime's answers beside what `origin` computes.

    Args:
        model: the files.
        checked: what runtimes answered to `data`.
        data: of the check.
        origin: a run directory, or the file that was imported.

    Raises:
        UserError: `origin` is neither, or of another network.
    """
    name = next(iter(checked.outputs))
    inputs = fed(model, data, slice(IMAGES))[:IMAGES]
    real = isinstance(data, DataSet)
    name_of = f"images of {data.name}" if real else data.name.removeprefix("none: ")
    text = f"{len(inputs)} {name_of}"
    chosen = Chosen(inputs, text, real)
    tensors = {key: codes[: len(inputs)] for key, codes in checked.tensors[name].items()}
    answers = Answers(tensors, checked.outputs[name][: len(inputs)])
    if origin.is_dir():
        return _beside_run(model, origin, chosen, answers)
    dialect = _imported(model, origin)
    _require_same(model, dialect, origin)
    known = known_of_file(origin, dialect, inputs)
    return judge_file(origin, dialect, chosen, known, answers)


def _beside_run(model: Model, folder: Path, chosen: Chosen, answers: Answers) -> WitnessRecord:
    """Compare with the networks of the run in `folder` at the files' bits."""
    run, facts = Run.open(folder), model.facts
    selection = selection_in_run(run, facts)
    dialect = integer_model_at(RunSource(run), selection, bool(facts["islands"]))
    if facts["input_kind"] == "uint8":
        UseRawPixels()(dialect)
    _require_same(model, dialect, folder)
    return judge_run(run, selection, dialect, chosen, answers)


def _imported(model: Model, path: Path) -> ir.Model:
    """Return `path` imported as the files were."""
    allow_float, facts = bool(model.facts["islands"]), model.facts
    try:
        return read_foreign(path, None, allow_float)[0]
    except UnsupportedError:
        # Its output is float, perhaps: it was given the grid that the files have.
        scale, zero_point = facts["output_scale"], facts["output_zero_point"]
        span = (-zero_point * scale, (255 - zero_point) * scale)
        return read_foreign(path, span, allow_float)[0]


def _require_same(model: Model, dialect: ir.Model, origin: Path) -> None:
    """Refuse files whose tensors are not those that `origin` becomes."""
    facts = describe(read_program(dialect))
    for what in ("input_shape", "tensors"):
        if facts[what] != model.facts[what]:
            path = model.ordered[0].path
            raise UserError(f"{path} was not made from {origin}: its {what} are others")
