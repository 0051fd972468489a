"""What a search starts from: weights that serve every candidate, as frontends leave them."""

from collections.abc import Sequence

from torch import Tensor, nn

from qtool.core.errors import UserError
from qtool.networks import build_prepared, load_state
from qtool.nn.control import initialise_weight_steps, quantizers
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.training.frontend import SearchStart


def search_start(run: Run) -> SearchStart:
    """Return what gives a model, prepared for a search, the meta-state of `run`."""
    return lambda model: load_meta(model, run)


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
        if isinstance(module, FakeQuantizer):
            state = _converted(state, name, old[name], module, run)
    model.load_state_dict(state)
    before = [quantizer.bits for quantizer in quantizers(source) if quantizer.role == "weight"]
    if before != [q.bits for q in quantizers(model) if q.role == "weight"]:
        initialise_weight_steps(model)


def _converted(
    state: dict[str, Tensor], name: str, old: nn.Module, new: FakeQuantizer, run: Run
) -> dict[str, Tensor]:
    """Return `state` with the rows that quantizer `new`, at `name`, has of `old`."""
    if not isinstance(old, FakeQuantizer) or old.bits == new.bits:
        return state
    if new.role == "weight":
        return {**state, **new.state_dict(prefix=f"{name}.")}
    rows = _rows(old.bits, new.bits, run)
    changed = {
        key: state[key][rows] if state[key].shape[0] == len(old.bits) else state[key]
        for key in old.state_dict(prefix=f"{name}.")
    }
    return {**state, **changed}


def _rows(old: Sequence[int], new: Sequence[int], run: Run) -> list[int]:
    missing = [bits for bits in new if bits not in old]
    if missing:
        raise UserError(
            f"run {run.folder}: its meta-state has activations of "
            f"{', '.join(map(str, old))} bits, not {', '.join(map(str, missing))}: choose "
            "among these, or train one with --set activation_bits=..."
        )
    return [old.index(bits) for bits in new]
