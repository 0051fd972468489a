"""What a run keeps of a network that was trained at pairs of bits."""

from torch import nn

from qtool.core.cost import FLOAT_BITS
from qtool.core.pairs import pair_key
from qtool.core.selection import LayerBits, Selection
from qtool.frontends.mebqat.float_form import float_state
from qtool.nn.control import select
from qtool.nn.norm_rows import settle
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.training.statistics import statistics_of


def save_network(run: Run, network: nn.Module, model: nn.Module, default: LayerBits) -> None:
    """Save float weights, statistics of every pair and, last, the model at `default`.

    Args:
        run: gets them.
        network: what `model` was prepared from.
        model: trained, its norms with rows; `default`'s are all that is left of these.
        default: the pair that its own state holds.
    """
    run.save_weights(Stage.FLOAT, float_state(network, model, FLOAT_BITS))
    run.save_weights(Stage.NORMS, statistics_of(model, pair_key(default)))
    select(model, Selection())
    settle(model)
    run.save_weights(Stage.MODEL, model.state_dict())
