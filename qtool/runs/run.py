"""The run directory: what training leaves behind, and what search, export and check read.

    recipe.json            the config, with a format number
    float.safetensors      float weights (the FP reference)
    meta.safetensors       prepared model after bit-meta (where every search starts)
    searched.safetensors   prepared model after bit-search (where fine-tuning starts)
    model.safetensors      prepared model as it is deployed now
    corrections.safetensors  rows of norms and biases for other uniform bits: w4a4/NAME
    norms.safetensors      BatchNorm statistics of every other pair of bits: w4a4/NAME
    zero_shot.safetensors  BatchNorm of pairs that were never trained (`qtool.runs.zero_shot`)
    adaptive.onnx          traced graph of all bits, since the first export (`qtool.export`)
    sample.npy             a few training images, to compare exports with the network on
    classes.json           names of the classes that it was adapted to (`qtool adapt`)
    witness.json           comparisons of exports with the network (`qtool.witness.seen`)
    eval.json, eval.png    accuracy at pairs of bit-widths (`qtool eval`)
    bits.json              chosen bits (after `qtool search`)
    search.json            settings of a search that the recipe has no fields for
    metrics.jsonl          one JSON object per epoch and result
    checkpoint.safetensors unfinished training: weights, optimizers, random numbers, position

Every file is written whole, under a temporary name, and renamed; metrics.jsonl is appended to,
and cut back to what the checkpoint knows when training continues. Tensors carry a checksum
(`qtool.tensor_file`). Nothing is ever unpickled. In a job of several processes
(`qtool.parallel.job`) the first one writes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qtool
from qtool.core.errors import UserError, listed
from qtool.core.files import (
    leftovers,
    link_or_copy,
    read_json,
    refuse_existing,
    room_for,
    write_json,
)
from qtool.core.selection import BITS_FORMAT, Selection, check_format, selection_from_json
from qtool.data.images import DataSet
from qtool.parallel.together import on_main
from qtool.runs.sample import SAMPLE, keep_sample
from qtool.runs.stage import Stage
from qtool.settings.base import Config, ConfigT
from qtool.settings.registry import config_as, from_json, to_json
from qtool.tensor_file import load_tensors, save_tensors

if TYPE_CHECKING:  # exporting a run again needs no torch
    from torch import Tensor

# 2: layers share the grid of an 8-bit tensor that they read at 8 bits.
RUN_FORMAT = 2
CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
SEARCH = "search.json"
WITNESS = "witness.json"
EVALUATION, EVALUATION_PICTURE = "eval.json", "eval.png"
CLASSES = "classes.json"


@dataclass(frozen=True)
class Run:
    """Paths and content of one run directory.

    Args:
        folder: the directory.
        config: the recipe.
        input_shape: (C, H, W) of the images it was trained on.
        classes: number of logits.
    """

    folder: Path
    config: Config
    input_shape: tuple[int, ...]
    classes: int

    @classmethod
    def create(
        cls, folder: Path, config: Config, data: DataSet, resume: bool, force: bool
    ) -> "Run":
        """Start a run in `folder`, or return the one there if `resume`.

        What does not change results (`_MACHINE`) may then be set otherwise than at the start.
        """
        on_main(lambda: cls._start(folder, config, data, resume, force))
        return replace(cls.open(folder), config=config)

    @classmethod
    def _start(
        cls, folder: Path, config: Config, data: DataSet, resume: bool, force: bool
    ) -> None:
        recipe = folder / "recipe.json"
        if resume and recipe.exists():
            run = cls.open(folder)
            run.require_shape(data)
            _require_same(run.config, config, folder)
            return
        if not resume:
            refuse_existing(recipe, force)
        if force:
            _clear(folder)
        _write_recipe(folder, config, data.shape, config.outputs(data.classes))
        keep_sample(folder, data)

    def derive(
        self, folder: Path, config: Config, stages: Sequence[Stage], resume: bool, force: bool
    ) -> "Run":
        """Start a run in `folder` that goes on from this one, or return the one there.

        Args:
            folder: the new directory.
            config: its recipe.
            stages: whose weights it starts with; linked, not copied, where that is possible.
            resume: return the run that is there.
            force: replace it.
        """

        def start() -> None:
            if resume and (folder / "recipe.json").exists():
                _require_same(Run.open(folder).config, config, folder)
                return
            refuse_existing(folder / "recipe.json", force)
            _clear(folder)
            folder.mkdir(parents=True, exist_ok=True)
            for stage in stages:
                _link(stage, self.folder, folder)
            if self.path(SAMPLE).exists():
                link_or_copy(self.path(SAMPLE), folder / SAMPLE)
            _write_recipe(folder, config, self.input_shape, self.classes)

        on_main(start)
        return Run.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Return the run in `folder`.

        Raises:
            UserError: no run there, a newer format, or damaged JSON.
        """
        if not folder.is_dir():
            raise UserError(
                f"run {folder}: no such directory (make one with qtool train --out)"
            )
        value = read_json(folder / "recipe.json", "run recipe")
        where = f"run {folder} (written by qtool {value.get('qtool')})"
        check_format(value, RUN_FORMAT, where)
        if value["format"] < RUN_FORMAT:
            raise UserError(
                f"{where}: format {value['format']} has other grids than this qtool reads "
                f"({RUN_FORMAT}); train it again"
            )
        try:
            recipe, shape = dict(value["recipe"]), tuple(int(n) for n in value["input_shape"])
            classes = int(value["classes"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"run {folder}: recipe.json is damaged: {error!r}") from None
        return cls(folder, from_json(recipe, f"run {folder}"), shape, classes)

    def require_shape(self, data: DataSet) -> None:
        """Refuse images or classes other than those that the run was trained on."""
        outputs = self.config.outputs(data.classes)
        if (data.shape, outputs) != (self.input_shape, self.classes):
            raise UserError(
                f"data set {data.name} has {data.classes} classes of images {data.shape}; run "
                f"{self.folder} was trained on {self.classes} of {self.input_shape}"
            )
        names = self.class_names()
        if names and data.names and names != list(data.names):
            raise UserError(
                f"data set {data.name} has classes {listed(data.names)}; run {self.folder} "
                f"was adapted to {listed(names)}: give a folder of these with --data"
            )

    def settings(self, kind: type[ConfigT]) -> ConfigT:
        """Return the recipe, which must be a `kind`.

        Raises:
            UserError: another frontend made the run.
        """
        return config_as(self.config, kind, f"run {self.folder}")

    def path(self, name: str) -> Path:
        """Return the path of a file of this run."""
        return self.folder / name

    def has_weights(self, stage: Stage) -> bool:
        """True when `stage` has been saved."""
        return self.path(stage.file).exists()

    def save_weights(self, stage: Stage, state: dict[str, "Tensor"], **facts: Any) -> None:
        """Write a state dict, and `facts` of it, JSON values, into its mark."""
        path, mark = self.path(stage.file), {"format": RUN_FORMAT, "stage": stage, **facts}
        on_main(lambda: save_tensors(path, state, mark))

    def link_weights(self, stage: Stage, source: "Run") -> None:
        """Take over the weights of `source`; linked, not copied, where that is possible."""
        on_main(lambda: _link(stage, source.folder, self.folder))

    def load_weights(self, stage: Stage) -> dict[str, "Tensor"]:
        """Read a state dict.

        Raises:
            UserError: missing, truncated, or not written by qtool.
        """
        self.require_weights(stage)
        return load_marked(self.path(stage.file))[0]

    def require_weights(self, stage: Stage) -> None:
        """Raise `UserError` if `stage` has not been saved."""
        if not self.has_weights(stage):
            raise UserError(
                f"run {self.folder}: no {stage.file}; training has not finished "
                "(qtool train ... --resume continues it)"
            )

    def drop_checkpoint(self) -> None:
        """Forget unfinished training: a stage was completed."""
        on_main(lambda: self.path(CHECKPOINT).unlink(missing_ok=True))

    def remove_leftovers(self) -> None:
        """Remove the temporary files of writers that were killed."""

        def remove() -> None:
            for leftover in (
                file for name in _OWN_FILES for file in leftovers(self.path(name))
            ):
                leftover.unlink(missing_ok=True)

        on_main(remove)

    def add_metrics(self, **values: Any) -> None:
        """Append a line to metrics.jsonl."""

        def append() -> None:
            path = self.path(METRICS)
            with room_for(path), path.open("a") as file:
                file.write(json.dumps(values) + "\n")

        on_main(append)

    def metrics(self, phase: str | None = None) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, of one `phase` or of all, oldest first."""
        path = self.path(METRICS)
        lines = path.read_text().splitlines() if path.exists() else []
        try:
            values = [json.loads(line) for line in lines]
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from None
        return [value for value in values if phase in (None, value.get("phase"))]

    def class_names(self) -> list[str]:
        """Return the names of the classes that it was adapted to; none: it was not."""
        path = self.path(CLASSES)
        if not path.exists():
            return []
        names = read_json(path, "class names").get("classes")
        if not isinstance(names, list) or len(names) != self.classes:
            raise UserError(f"{path} is damaged: expected {self.classes} names: adapt again")
        return [str(name) for name in names]

    def save_bits(self, content: dict[str, Any]) -> None:
        """Write bits.json."""
        path = self.path("bits.json")
        on_main(lambda: write_json(path, {"format": BITS_FORMAT, **content}))

    def load_bits(self) -> dict[str, Any] | None:
        """Return the content of bits.json, None before the first search."""
        path = self.path("bits.json")
        return read_json(path, "bits file") if path.exists() else None

    @property
    def is_chosen(self) -> bool:
        """True of what a search made of a jointly trained run: it has its own bits only."""
        return self.config.is_joint and self.load_bits() is not None

    def selection(self) -> Selection:
        """Return the searched bits; the widest candidates before any search."""
        content = self.load_bits()
        return Selection() if content is None else selection_from_json(content, "bits.json")


_OWN_FILES = (
    *(stage.file for stage in Stage), CHECKPOINT, "bits.json", METRICS, SEARCH,
    WITNESS, SAMPLE, CLASSES, "adaptive.onnx", EVALUATION, EVALUATION_PICTURE,
)  # fmt: skip
RUN_FILES = ("recipe.json", *_OWN_FILES)

_MACHINE = ("workers", "device", "checkpoint_minutes", "checkpoint_steps")


def _results(config: Config) -> dict[str, Any]:
    """Return the settings that results depend on."""
    return {key: value for key, value in to_json(config).items() if key not in _MACHINE}


def _require_same(known: Config, asked: Config, folder: Path) -> None:
    """Refuse to continue the run in `folder` with settings that change results."""
    if _results(known) != _results(asked):
        raise UserError(
            f"{folder / 'recipe.json'} holds other settings than this command: repeat the "
            "first command's recipe and --set, or choose another --out"
        )


def _write_recipe(folder: Path, config: Config, shape: Sequence[int], classes: int) -> None:
    header = {
        "format": RUN_FORMAT, "qtool": qtool.__version__, "recipe": to_json(config),
        "input_shape": list(shape), "classes": classes,
    }  # fmt: skip
    write_json(folder / "recipe.json", header)


def _link(stage: Stage, source: Path, target: Path) -> None:
    link_or_copy(source / stage.file, target / stage.file)


def require_apart(folder: Path, config: Config) -> None:
    """Refuse to replace the run in `folder` by one that starts from it."""
    for name in ("weights", "teacher", "source"):
        value = getattr(config, name, "")
        source = Path(value).resolve()
        if value and source.exists() and folder.resolve() in (source, source.parent):
            raise UserError(
                f"recipe setting {name}: {value} is in {folder}, which --force would replace: "
                "choose another --out"
            )


def _clear(folder: Path) -> None:
    """Remove the files of an earlier run, and only those."""
    for name in _OWN_FILES:
        (folder / name).unlink(missing_ok=True)


def load_marked(path: Path, advice: str = "") -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Return the tensors of a run's file, and its mark.

    Raises:
        UserError: truncated, altered, of a newer format, or not written by qtool.
    """
    tensors, mark = load_tensors(path, advice)
    check_format(mark, RUN_FORMAT, f"checkpoint {path}")
    return tensors, mark
