"""Where a search's results go, and the settings that are kept with them."""

from pathlib import Path

from qtool.core.errors import UserError
from qtool.core.files import read_json, write_json
from qtool.runs.run import SEARCH, Run
from qtool.runs.stage import Stage
from qtool.search.request import Request
from qtool.settings.base import TrainConfig
from qtool.settings.search import missing_settings

_FOLDER = "pareto"


def results_folder(run: Run, request: Request) -> Path:
    """Return the folder of results that do not replace the run's own.

    Raises:
        UserError: the one that was asked for is the run itself.
    """
    folder = request.out or run.path(_FOLDER)
    if folder.resolve() == run.folder.resolve():
        raise UserError(f"--out {folder} is the run itself: leave it out, or name another")
    return folder


def keep_settings(base: Run, request: Request) -> None:
    """Write the settings that the recipe has no fields for.

    Raises:
        UserError: an interrupted search had others.
    """
    recipe, path = base.settings(TrainConfig), base.path(SEARCH)
    settings = request.search_settings(recipe)
    content = {name: getattr(settings, name) for name in missing_settings(recipe)}
    if not content:
        return
    if request.resume and path.exists() and read_json(path, "settings of a search") != content:
        raise UserError(
            f"{path} holds other settings than this command: repeat the first command's "
            "--set, or choose another --out"
        )
    write_json(path, content)


def places(base: Run, request: Request) -> list[Run]:
    """Return the run of every budget's result, in `base`."""
    return [
        base.derive(base.path(budget.name), base.config, [Stage.FLOAT], request.resume, True)
        for budget in request.budgets
    ]
