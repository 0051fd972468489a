"""What a search of a jointly trained run starts from: its own weights, which serve every pair.

They were trained quantized, steps and clipping values included, at every pair of bits, so
that there is nothing to train before or beside a search. Of BatchNorm's rows a layer takes
that of its own bits where rows may be mixed (CoQuant). Exact ones (MEBQAT) differ in their
statistics alone, which a mixed selection is given anew: they are left out.
"""

from functools import partial

from torch import nn

from qtool.core.errors import UserError
from qtool.core.selection import Selection
from qtool.networks import load_adaptive
from qtool.nn.control import select
from qtool.nn.norm_rows import settle, switches
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import TrainConfig
from qtool.training.frontend import SearchStart


def search_start(run: Run) -> SearchStart:
    """Return what a search of `run`, of a frontend that trains at pairs, starts from.

    Raises:
        UserError: training has not finished, or the run is a search's result itself.
    """
    run.require_weights(Stage.MODEL)
    if run.is_chosen:
        raise UserError(
            f"run {run.folder} is what a search chose, with statistics of its own bits only: "
            "search the run that it comes from"
        )
    return SearchStart(partial(_joint_network, run), is_joint=True)


def _joint_network(run: Run, _config: TrainConfig) -> nn.Module:
    """Return the trained network of `run` with all of its candidates, the default ones on."""
    model = load_adaptive(run, zero_shot=False)
    if any(switch.is_exact for switch in switches(model)):
        settle(model)
    select(model, Selection())
    return model
