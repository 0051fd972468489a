"""What a search starts from: weights that serve every candidate, as frontends leave them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from qtool.core.bank import Bank
from qtool.core.errors import UserError
from qtool.networks import build_prepared, load_state
from qtool.nn.control import initialise_weight_steps, quant_layers
from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.modules.weight_quant import WeightQuantizer
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import TrainConfig
from qtool.training.frontend import SearchStart


def search_start(run: Run) -> SearchStart:
    """Return what a search of `run` starts from: its meta-state.

    Raises:
        UserError: `run` has no meta-state.
    """
    run.require_weights(Stage.META)
    return SearchStart(partial(_meta_network, run))


def _meta_network(run: Run, config: TrainConfig) -> nn.Module:
    """Return the network of recipe `config` with the meta-state of `run`."""
    model = build_prepared(replace(run, config=config))
    load_meta(model, run)
    return model


def load_meta(model: nn.Module, run: Run) -> None:
    """Give `model` the meta-state of `run`, whose recipe may have more candidates.

    Weight steps come from the weights where the weights' candidates differ.

    Raises:
        UserError: `run` has no meta-state, or one without some activation candidate.
    """
    source = build_prepared(run)
    load_state(source, run, Stage.META)
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
