"""A search on a jointly trained run: its weights serve every pair of bits already.

Nothing is trained unless fine-tuning is asked for. Each budget's result is a run of its own,
in a folder beside the front's pareto.json, with the weights that the run has and BatchNorm
statistics taken at the chosen bits. The run itself stays as it is. Results, and the run at
every uniform pair, are measured on images held out of the search and its statistics
(`qtool.search.held_out`). pareto.json is written after each: a front that was interrupted, or
gets more budgets, goes on when the command is repeated.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qtool.core.errors import UserError
from qtool.core.pairs import pair_key
from qtool.core.progress import Progress
from qtool.data.images import DataSet, Source
from qtool.data.part import digest_of
from qtool.export.adaptive import origin_key
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
    config = request.recipe(run.settings(TrainConfig))
    if not request.search_settings(config).fixed_meta_state:
        raise UserError(
            "recipe setting fixed_meta_state: got false, but jointly trained weights stay as "
            "they are in a search: leave it out"
        )
    rest, images = hold_out(data, config, request.held_out)
    model = start.network(config).to(training_device(config))
    pairs = request.pairs(run.config)
    space = space_of(model, run.input_shape, pairs)
    request = with_front(request, space)
    bounds = limits_of(request, run, space, progress)
    for limits in bounds:
        check_reachable(limits)
    question = Question(
        origin_key(run), request.method, tuple(map(pair_key, pairs)),
        bool(request.finetune), len(images), digest_of(images),
    )  # fmt: skip
    base, front = _open(run, request, config, question, images, progress)
    runs = places(base, replace(request, resume=bool(front.record.uniform)))
    request = replace(request, resume=True)
    _measure_uniform(run, space, front)
    results = [Result(*found) for found in zip(request.budgets, runs, bounds, strict=True)]
    todo = [result for result in results if front.record.find(result.budget) is None]
    task = Task(
        base, settings_for(base, request), rest, model, space,
        [(result.budget.name, result.limits) for result in todo], progress, True, True,
    )  # fmt: skip
    if todo:
        _choose(task, todo, request, front)
    return [result.run.load_bits() or {} for result in results]


def _open(
    run: Run, request: Request, config: TrainConfig, question: Question, images: Source,
    progress: Progress,
) -> tuple[Run, _Front]:  # fmt: skip
    """Return the run of the front, and what is known of `question`.

    Raises:
        UserError: the folder has something else.
    """
    folder = results_folder(run, request)
    path = folder / FRONT
    known = None if request.force else read_front(path)
    if known is not None and known.question.origin != question.origin:
        progress.note(f"{path} is of other weights: everything is searched again")
        known, request = None, replace(request, force=True)
    elif known is not None and known.question != question:
        same = str(known.question) == str(question)
        asked = "other images of that number" if same else str(question)
        raise UserError(
            f"{path} holds {known.question}; asked for is {asked}: choose another --out, or "
            "replace it with --force"
        )
    goes_on = known is not None
    base = run.derive(folder, config, [Stage.FLOAT], goes_on, request.force)
    on_main(lambda: keep_settings(base, replace(request, resume=goes_on)))
    front = _Front(path, known or FrontRecord(question), images, progress)
    if not goes_on:
        base.path(TABLE).unlink(missing_ok=True)
        on_main(lambda: write_front(path, front.record))
    return base, front


def _measure_uniform(run: Run, space: Space, front: _Front) -> None:
    """Measure the run at every pair that all layers may have."""
    todo = {
        bits: picks for bits, picks in space.uniform.items()
        if not front.record.has(pair_key(bits))
    }  # fmt: skip
    if not todo:
        return
    model = load_adaptive(run).to(training_device(run.settings(TrainConfig)))
    bops = limit_of("bops", 0.0, space, layer_bops)
    front.progress.start("uniform bits", len(todo))
    for bits, picks in todo.items():
        select_pair(model, bits)
        found = accuracy(model, front.images)
        front.keep(Uniform(pair_key(bits), int(bops.used(picks)), found, False))
        front.progress.step(f"{pair_key(bits)} {found:.2f} %")


def _choose(task: Task, todo: list[Result], request: Request, front: _Front) -> None:
    """Search, and make, fine-tune and measure the run of each of `todo`."""
    found = load_method(request.method)(task)
    task.run.drop_checkpoint()
    for result, chosen in zip(todo, found, strict=True):
        deploy(task, result, request.method, chosen, copy.deepcopy(task.model))
        content = finish(result, task.data, request, task.progress)
        model = load_deployed(result.run, result.run.selection())
        held_out = accuracy(model.to(training_device(task.config)), front.images)
        front.keep(
            Point(
                result.run.folder.name, request.method, content["bops"], held_out,
                tested(result.run), False, False,
                *(getattr(result.budget, kind) for kind in ("bops", "bytes", "seconds")),
            )
        )  # fmt: skip
        task.progress.note(f"{result.budget.name}: {held_out:.2f} % of held-out images")
