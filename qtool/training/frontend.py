"""Training methods by name: each turns a recipe and data into a run directory.

A frontend is a module or a folder of `qtool.frontends` that says in a `FRONTEND` what it is,
and a line in `FRONTENDS`. Its settings class has another one in
`qtool.settings.registry.CONFIGS`, which needs no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from rich.table import Table
from torch import nn

from qtool.core.errors import unknown_name
from qtool.core.progress import Progress
from qtool.data.images import DataSet
from qtool.runs.run import Run
from qtool.settings.base import Config, TrainConfig
from qtool.training.episode_tests import EpisodeTester


@dataclass(frozen=True)
class SearchStart:
    """Weights that serve every candidate of a search.

    Args:
        network: (recipe of the results) -> a network with these weights, prepared for at
            least its candidates; refuses those that the weights were not trained for.
        is_joint: they were trained quantized, grids included, at every pair of the run: a
            search trains nothing, and what it chooses needs statistics of BatchNorm alone.
    """

    network: Callable[[TrainConfig], nn.Module]
    is_joint: bool = False


@dataclass(frozen=True)
class Frontend:
    """A training method.

    Args:
        settings: class of its recipes.
        check: (recipe, data): refuses what `train` would refuse, and writes nothing.
        train: (run, data, progress, resume) -> table to show, None for none; leaves the
            stages FLOAT and MODEL in the run, and META if it can be searched.
        search_start: what a search of the run starts from; refuses a run that has no weights
            that serve several candidates, in its own words.
        next: the command that a user may give afterwards, with ``{run}`` in it and, where it
            needs them, ``{bits}``, a pair that the run has, and ``{data}``, nothing or
            `` --data DIR``, the images again.
        tester: of runs whose networks learn the test classes from episodes; None: they know
            them.
    """

    settings: type[Config]
    check: Callable[[Config, DataSet], None]
    train: Callable[[Run, DataSet, Progress, bool], Table | None]
    search_start: Callable[[Run], SearchStart]
    next: str
    tester: Callable[[Run, DataSet], EpisodeTester] | None = None


# Module of each one's `FRONTEND`.
FRONTENDS = {
    "adapted": "qtool.frontends.adapted",
    "coquant": "qtool.frontends.coquant.frontend",
    "mebqat": "qtool.frontends.mebqat.frontend",
    "mebqat_maml": "qtool.frontends.mebqat.maml",
    "mebqat_pn": "qtool.frontends.mebqat.pn",
    "metamix": "qtool.frontends.metamix.frontend",
    "ptq": "qtool.frontends.ptq.frontend",
    "qat": "qtool.frontends.qat",
}


def load_frontend(name: str) -> Frontend:
    """Return frontend `name`.

    Raises:
        UserError: no such frontend; with the nearest names.
    """
    if name not in FRONTENDS:
        raise unknown_name("frontend", name, FRONTENDS)
    found: Frontend = import_module(FRONTENDS[name]).FRONTEND
    return found
