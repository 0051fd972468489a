"""Bit-meta (MetaMix, arXiv 2311.06798, Eq. 1): weights that serve every candidate.

min over W of the mean over b of L(W; every layer at b), with weights in floating point and one
activation step a candidate. Where weights have several candidates too (paper, "Extension to
weight mixed-precision"), b runs over the pairs, and weights are quantized. The released code
backpropagates only the last candidate's loss; this follows the paper's mean.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from qtool.core.bank import Bank
from qtool.core.errors import UserError
from qtool.core.selection import LayerBits, Selection
from qtool.data.clips import clip_logits
from qtool.networks import build_prepared, load_state
from qtool.nn.control import initialise_weight_steps, quant_layers, select
from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.modules.weight_quant import WeightQuantizer
from qtool.nn.shared_prefix import SharedPrefix
from qtool.runs.run import Run
from qtool.settings.metamix import MetaMixConfig
from qtool.training.losses import Objective
from qtool.training.update import Losses, Pass, Update


def bit_meta(
    config: MetaMixConfig, model: nn.Module, objective: Objective
) -> tuple[Update, Losses]:
    """Return the step on the mean loss over the candidate bits (Eq. 1), and these losses."""
    shared, branches = SharedPrefix(model), branches_of(config)
    has_weights = not branches[0].is_float

    def losses(x: Tensor, labels: Tensor) -> Iterator[Pass]:
        model.train()
        loss = objective.on(x, labels)
        with shared.passes(x) as run:
            for bits in branches:
                select(model, Selection(default=bits), weights=has_weights)
                logits = clip_logits(run(), len(labels))
                yield loss(logits), logits

    return Update(config, model, config.meta_lr, len(branches)), losses


def branches_of(config: MetaMixConfig) -> list[LayerBits]:
    """Return what bit-meta runs over: activation bits on float weights, or pairs."""
    weights = config.weight_bits
    several = () if isinstance(weights, int) or len(weights) == 1 else weights
    return [LayerBits(w, a) for w in several or (32,) for a in config.activation_bits]


def load_meta(model: nn.Module, run: Run) -> None:
    """Give `model` the meta-state of `run`, whose recipe may have more candidates.

    Weight steps come from the weights where the weights' candidates differ.

    Raises:
        UserError: `run` has no meta-state, or one without some activation candidate.
    """
    source = build_prepared(run)
    load_state(source, run, "meta")
    old, state = dict(source.named_modules()), source.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            state = _converted(state, name, old[name], module, run)
    model.load_state_dict(state)
    if _weight_bits(source) != _weight_bits(model):
        initialise_weight_steps(model)


def _weight_bits(model: nn.Module) -> list[tuple[int, ...]]:
    return [layer.weight_quant.bits for layer in quant_layers(model)]


def _converted(
    state: dict[str, Tensor], name: str, old: nn.Module, new: Quantizer, run: Run
) -> dict[str, Tensor]:
    """Return `state` with the rows that quantizer `new`, at `name`, has of `old`."""
    if not isinstance(old, Quantizer) or old.bits == new.bits:
        return state
    if isinstance(new, WeightQuantizer):
        return {**state, **new.state_dict(prefix=f"{name}.")}
    rows = _rows(Bank(old.bits), new.bits, run)
    mine = old.state_dict(prefix=f"{name}.")
    changed = {
        key: state[key][rows] if state[key].shape[0] == len(old.bits) else state[key]
        for key in mine
    }
    return {**state, **changed}


def _rows(old: Bank[int], new: Sequence[int], run: Run) -> list[int]:
    missing = old.missing(new)
    if missing:
        raise UserError(
            f"run {run.folder}: its meta-state has activations of "
            f"{', '.join(map(str, old.keys))} bits, not {', '.join(map(str, missing))}: "
            "choose among these, or train one with --set activation_bits=..."
        )
    return old.rows_of(new)
