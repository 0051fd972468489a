"""What a run keeps of a network that was trained at pairs of bits."""

from torch import nn

from qtool.core.cost import FLOAT_BITS
from qtool.core.selection import LayerBits
from qtool.frontends.mebqat.float_form import float_state
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.training.statistics import save_rows


def save_network(run: Run, network: nn.Module, model: nn.Module, default: LayerBits) -> None:
    """Save float weights, statistics of every pair and, last, the model at `default`.

    Args:
        run: gets them.
        network: what `model` was prepared from.
        model: trained, its norms with rows; `default`'s are all that is left of these.
        default: the pair that its own state holds.
    """
    run.save_weights(Stage.FLOAT, float_state(network, model, FLOAT_BITS))
    save_rows(run, model, default)
