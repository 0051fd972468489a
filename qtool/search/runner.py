"""A search from request to results: one run directory a budget, all from one meta-state.

Without ``--out`` the result is the run itself (one budget), or goes to folders inside its
``pareto``. Every result is a whole run directory: its recipe has the search's candidates and
settings, its float and meta weights are those of the run it comes from; settings that the
recipe of another frontend than MetaMix has no fields for are in search.json. Jointly trained
runs need no meta-state: `qtool.search.joint`.
"""

import time
from typing import Any

from torch.nn import Module

from qtool.core.errors import UserError
from qtool.core.files import refuse_existing
from qtool.core.progress import Progress
from qtool.data.images import DataSet
from qtool.parallel.together import on_main
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.search.budgets import limits_of, with_front
from qtool.search.joint import search_joint
from qtool.search.limits import check_reachable
from qtool.search.methods import Task, load_method
from qtool.search.places import keep_settings, places, results_folder
from qtool.search.request import Request
from qtool.search.results import (
    Result,
    answer,
    finish,
    prepared,
    save_choice,
    save_front,
    settings_for,
)
from qtool.search.space import Space, space_of
from qtool.settings.base import TrainConfig
from qtool.settings.search import search_settings
from qtool.training.frontend import load_frontend


def run_search(
    run: Run, data: DataSet, request: Request, progress: Progress
) -> list[dict[str, Any]]:
    """Choose bits for every budget of `request`, fine-tune at them.

    Returns:
        Every budget's bits.json.

    Raises:
        UserError: a budget that cannot be met, candidates that the meta-state lacks, results
            that are there already.
    """
    run.require_shape(data)
    start = load_frontend(run.config.frontend).search_start(run)
    request = request.for_run(start.is_joint)
    if start.is_joint:
        return search_joint(run, start, data, request, progress)
    config = _config(run, request)
    on_main(lambda: _refuse_results(run, request))
    # Candidates that the weights lack are refused before anything is measured or written.
    model = start.network(config)
    space = space_of(prepared(run, config), run.input_shape)
    request = with_front(request, space)
    bounds = limits_of(request, run, space, progress)
    for limits in bounds:
        check_reachable(limits)
    base = _base(run, request, config)
    on_main(lambda: keep_settings(base, request))
    runs = [base] if len(request.budgets) == 1 else places(base, request)
    results = [Result(*found) for found in zip(request.budgets, runs, bounds, strict=True)]
    if not all(answer(result, request) for result in results):
        _choose(model, base, data, request, space, results, progress)
    contents = [finish(result, data, request, progress) for result in results]
    if len(results) > 1:
        save_front(base, results, contents)
    return contents


def _config(run: Run, request: Request) -> TrainConfig:
    """Return the recipe of the results.

    Raises:
        UserError: it is not the run's own, and the results would replace the run's.
    """
    own = run.settings(TrainConfig)
    config = request.config(own)
    if request.search_settings(config) != search_settings(own) and _is_in_place(request):
        raise UserError(
            f"run {run.folder} has other candidates or settings than this search: give its "
            "result a folder of its own with --out"
        )
    return config


def _is_in_place(request: Request) -> bool:
    return request.out is None and len(request.budgets) == 1 and not request.front


def _refuse_results(run: Run, request: Request) -> None:
    """Refuse results that are there already, before minutes go into measuring latency."""
    folder, name = run.folder, "bits.json"
    if not _is_in_place(request):
        folder, name = results_folder(run, request), "recipe.json"
    if not request.resume:
        refuse_existing(folder / name, request.force)


def _base(run: Run, request: Request, config: TrainConfig) -> Run:
    """Return the run in which the search happens."""
    if _is_in_place(request):
        return run
    folder = results_folder(run, request)
    return run.derive(folder, config, [Stage.FLOAT], request.resume, request.force)


def _choose(
    model: Module, base: Run, data: DataSet, request: Request, space: Space,
    results: list[Result], progress: Progress,
) -> None:  # fmt: skip
    """Search from the weights of `model`; leaves every result's bits and searched weights."""
    config = settings_for(base, request)
    if not _is_in_place(request):
        base.save_weights(Stage.META, model.state_dict())
    task = Task(
        base, config, data, model, space,
        [(result.budget.name, result.limits) for result in results], progress, request.resume,
    )  # fmt: skip
    began = time.monotonic()
    found = load_method(request.method)(task)
    progress.note(f"{request.method} search: {time.monotonic() - began:.1f} s")
    for result, chosen in zip(results, found, strict=True):
        save_choice(task, result, request.method, chosen)
    base.drop_checkpoint()
