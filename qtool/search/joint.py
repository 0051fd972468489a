"""A search on a jointly trained run: its weights serve every pair of bits already.

Nothing is trained unless fine-tuning is asked for. Each budget's result is a run of its own,
in a folder beside the front's pareto.json, with the weights that the run has and BatchNorm
statistics taken at the chosen bits. The run itself stays as it is. Results, and the run at
every uniform pair, are measured on images held out of the search and its statistics
(`qtool.search.held_out`). pareto.json is written after each: a front that was interrupted, or
gets more budgets, goes on when the command is repeated.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from qtool.core.errors import UserError
from qtool.core.pairs import pair_key
from qtool.core.progress import Progress
from qtool.data.images import DataSet, Source
from qtool.data.part import digest_of
from qtool.export.adaptive import trained_key
from qtool.networks import load_adaptive, load_deployed
from qtool.nn.control import select_pair
from qtool.parallel.together import on_main
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.search.budgets import limits_of, with_front
from qtool.search.front import (
    FRONT,
    FrontRecord,
    Point,
    Question,
    Uniform,
    read_front,
    write_front,
)
from qtool.search.held_out import hold_out
from qtool.search.limits import check_reachable, layer_bops, limit_of
from qtool.search.measured import TABLE
from qtool.search.methods import Task, load_method
from qtool.search.places import keep_settings, places, results_folder
from qtool.search.request import Request
from qtool.search.results import Result, deploy, finish, settings_for, tested
from qtool.search.space import Space, space_of
from qtool.settings.base import TrainConfig
from qtool.training.device import training_device
from qtool.training.evaluation import accuracy
from qtool.training.frontend import SearchStart


@dataclass
class _Front:
    """The front of a run, as it grows.

    Args:
        path: of its pareto.json.
        record: what is known.
        images: held out.
        progress: shows what is done.
    """

    path: Path
    record: FrontRecord
    images: Source
    progress: Progress

    def keep(self, found: Point | Uniform) -> None:
        """Write `found` into the record."""
        self.record = self.record.extended(found)
        self.save()

    def save(self) -> None:
        """Write the record."""
        on_main(lambda: write_front(self.path, self.record))


def search_joint(
    run: Run, start: SearchStart, data: DataSet, request: Request, progress: Progress
) -> list[dict[str, Any]]:
    """Choose bits for every budget of `request`; measure them, and every uniform pair.

    Returns:
        Every budget's bits.json.

    Raises:
        UserError: a budget that cannot be met, pairs that were not trained, another front in
            the folder.
    """
    config, pairs = _recipe(run, request), request.pairs(run.config)
    rest, images = hold_out(data, config, request.held_out)
    question = Question(
        trained_key(run), request.method, tuple(map(pair_key, pairs)),
        bool(request.finetune), len(images), digest_of(images),
    )  # fmt: skip
    path = results_folder(run, request) / FRONT
    known = _known(path, question, request.force, progress)
    model = start.network(config).to(training_device(config))
    space = space_of(model, run.input_shape, pairs)
    request = with_front(request, space)
    bounds = limits_of(request, run, space, progress)
    for limits in bounds:
        check_reachable(limits)
    # A front that is there and of other weights may be replaced: nothing can go on with it.
    anew = request.force or path.exists()
    request = replace(request, resume=known is not None, force=anew)
    base = _base(run, request, config, path.parent)
    runs = places(base, request)
    front = _Front(path, known or FrontRecord(question), images, progress)
    front.save()
    _measure_uniform(run, space, front)
    results = [Result(*found) for found in zip(request.budgets, runs, bounds, strict=True)]
    _choose(base, rest, model, space, results, request, front)
    return [result.run.load_bits() or {} for result in results]


def _recipe(run: Run, request: Request) -> TrainConfig:
    """Return the recipe of the results.

    Raises:
        UserError: settings unknown or out of range, or such as would train the weights.
    """
    config = request.recipe(run.settings(TrainConfig))
    if not request.search_settings(config).fixed_meta_state:
        raise UserError(
            "recipe setting fixed_meta_state: got false, but jointly trained weights stay as "
            "they are in a search: leave it out"
        )
    return config


def _known(
    path: Path, question: Question, force: bool, progress: Progress
) -> FrontRecord | None:
    """Return what `path` knows of `question`; None: nothing, or nothing that is kept.

    Raises:
        UserError: it is of other bits, images or methods.
    """
    known = None if force else read_front(path)
    if known is None or known.question == question:
        return known
    if known.question.origin != question.origin:
        progress.note(f"{path} is of other weights: everything is searched again")
        return None
    same = str(known.question) == str(question)
    asked = "other images of that number" if same else str(question)
    raise UserError(
        f"{path} holds {known.question}; asked for is {asked}: choose another --out, or "
        "replace it with --force"
    )


def _base(run: Run, request: Request, config: TrainConfig, folder: Path) -> Run:
    """Return the run of the front, in `folder`; it starts anew unless it is resumed.

    Raises:
        UserError: the folder has something else, or other settings.
    """
    base = run.derive(folder, config, [Stage.FLOAT], request.resume, request.force)

    def start() -> None:
        keep_settings(base, request)
        if not request.resume:
            base.path(TABLE).unlink(missing_ok=True)

    on_main(start)
    return base


def _measure_uniform(run: Run, space: Space, front: _Front) -> None:
    """Measure the run at every pair that all layers may have."""
    todo = {
        bits: picks for bits, picks in space.uniform.items()
        if not front.record.has(pair_key(bits))
    }  # fmt: skip
    if not todo:
        return
    model = load_adaptive(run, zero_shot=False).to(training_device(run.settings(TrainConfig)))
    bops = limit_of("bops", 0.0, space, layer_bops)
    front.progress.start("uniform bits", len(todo))
    for bits, picks in todo.items():
        select_pair(model, bits)
        found = accuracy(model, front.images)
        front.keep(Uniform(pair_key(bits), int(bops.used(picks)), found, False))
        front.progress.step(f"{pair_key(bits)} {found:.2f} %")


def _choose(
    base: Run, data: DataSet, model: nn.Module, space: Space, results: Sequence[Result],
    request: Request, front: _Front,
) -> None:  # fmt: skip
    """Search for those of `results` that the front lacks; make and measure their runs."""
    todo = [result for result in results if front.record.find(result.budget) is None]
    if not todo:
        return
    config, request = settings_for(base, request), replace(request, resume=True)
    budgets = [(result.budget.name, result.limits) for result in todo]
    task = Task(base, config, data, model, space, budgets, front.progress, True, is_joint=True)
    found = load_method(request.method)(task)
    base.drop_checkpoint()
    for result, chosen in zip(todo, found, strict=True):
        deploy(task, result, request.method, chosen, copy.deepcopy(model))
        content = finish(result, data, request, front.progress)
        deployed = load_deployed(result.run, result.run.selection())
        held_out = accuracy(deployed.to(training_device(config)), front.images)
        front.keep(
            Point(
                result.run.folder.name, request.method, content["bops"], held_out,
                tested(result.run), False, False,
                *(getattr(result.budget, kind) for kind in ("bops", "bytes", "seconds")),
            )
        )  # fmt: skip
        front.progress.note(f"{result.budget.name}: {held_out:.2f} % of held-out images")
