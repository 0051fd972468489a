"""BatchNorm at a pair of bits after training: of trained widths, or between two of them.

Statistics are taken as training takes them (`qtool.training.statistics`). Weight and bias are
those that the run has at the pair; at one that was never trained they lie between those of its
neighbours (`qtool.core.zero_shot`), where pairs have their own.
"""

import hashlib
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qtool.core.errors import UserError
from qtool.core.pairs import default_pair, pair_key
from qtool.core.selection import LayerBits
from qtool.core.zero_shot import PairBetween, ZeroShot, place_of
from qtool.data.images import DataSet
from qtool.models.normalised import ConstantNorm
from qtool.networks import load_prepared, split_corrections
from qtool.nn.control import select_pair
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.runs.zero_shot import save_zero_shot, takes_pairs
from qtool.settings.base import TrainConfig
from qtool.training.evaluation import recalibrate_norms
from qtool.training.ingredients import make_batches
from qtool.training.statistics import STATISTICS

Tensors = Mapping[str, Tensor]


def require_addable(run: Run, bits: LayerBits) -> PairBetween:
    """Return where `bits` lies between trained widths.

    Raises:
        UserError: a run without statistics of pairs, or without classes; widths outside of
            what was trained, or a pair for which its BatchNorms have no weights.
    """
    if not takes_pairs(run):
        raise UserError(
            f"run {run.folder} keeps no statistics of pairs of bits: its BatchNorms have what "
            "they were trained with"
        )
    if run.config.classless:
        raise UserError(
            f"run {run.folder} is {run.config.classless}: statistics are taken of runs that "
            "know their classes"
        )
    place = place_of(run.config.weight_candidates, run.config.activation_bits, bits)
    _sources(run, _rows(run), bits, place)
    return place


def add_pair(run: Run, bits: LayerBits, data: DataSet) -> str:
    """Take BatchNorm's statistics of `run` at one more pair, or anew, and keep them in it.

    Args:
        run: has statistics of other pairs.
        bits: the pair.
        data: its training images, augmented as in training; labels are not looked at.

    Returns:
        What was done, in words.

    Raises:
        UserError: as `require_addable`.
    """
    place, rows = require_addable(run, bits), _rows(run)
    config, model = run.settings(TrainConfig), load_prepared(run, [bits])
    state, batches = model.state_dict(), make_batches(config, data)
    model.load_state_dict({**state, **_factors(run, rows, state, bits, place)})
    select_pair(model, bits)
    count = min(config.norm_batches, len(batches))
    recalibrate_norms(model, batches, count)
    images, taken = count * batches.size, model.state_dict()
    new = {name: taken[name].clone() for name in sorted(_names(rows) or _statistics(model))}
    if not place.is_trained:
        pair = ZeroShot(
            (bits.weight, bits.activation), place.weight.ends, place.activation.ends,
            images, data.name, _digest(new),
        )  # fmt: skip
        save_zero_shot(run, new, pair)
        return str(pair)
    key = pair_key(bits)
    known = {
        f"{pair}/{name}": t for pair, tensors in rows.items() for name, t in tensors.items()
    }
    added = {f"{key}/{name}": tensor for name, tensor in new.items()}
    run.save_weights(Stage.NORMS, {**known, **added})
    return f"statistics at {key}: {images:,} images of {data.name}"


def _rows(run: Run) -> dict[str, dict[str, Tensor]]:
    """Return what BatchNorms have for each pair but the default one, by the pair's key."""
    known = run.has_weights(Stage.NORMS)
    return split_corrections(run.load_weights(Stage.NORMS)) if known else {}


def _names(rows: Mapping[str, Tensors]) -> set[str]:
    """Return the tensors that pairs have for themselves, as the network calls them."""
    return {name for tensors in rows.values() for name in tensors}


def _statistics(model: nn.Module) -> set[str]:
    """Return what pairs can have for themselves where trained ones share it all."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, ConstantNorm)
        for name in STATISTICS
    }


def _sources(
    run: Run, rows: Mapping[str, Tensors], bits: LayerBits, place: PairBetween
) -> tuple[str, str] | None:
    """Return the keys of the rows that weight and bias at `bits` are of; None: of no pair.

    Raises:
        UserError: pairs have their own, and none is of these bits, nor on both sides of them.
    """
    if all(name.endswith(STATISTICS) for name in _names(rows)):
        return None
    default = pair_key(default_pair(run.config.weight_candidates, run.config.activation_bits))
    known = {default, *rows}
    ends = place.ends()
    if ends is None or not known.issuperset(map(pair_key, ends)):
        raise UserError(
            f"{pair_key(bits)}: run {run.folder} has BatchNorm weights of its own for "
            f"{', '.join(sorted(known))}; give a pair on the line between two of these"
        )
    return pair_key(ends[0]), pair_key(ends[1])


def _factors(
    run: Run,
    rows: Mapping[str, Tensors],
    state: Tensors,
    bits: LayerBits,
    place: PairBetween,
) -> dict[str, Tensor]:
    """Return BatchNorm's weights and biases at `bits`, where they are not those of `state`."""
    keys = _sources(run, rows, bits, place)
    if keys is None:
        return {}
    # What a row does not have is as in the default one, which is the state's.
    below, above = (rows.get(key, {}) for key in keys)
    return {
        name: place.weight.mix(below.get(name, state[name]), above.get(name, state[name]))
        for name in sorted(_names(rows))
        if not name.endswith(STATISTICS)
    }


def _digest(tensors: Tensors) -> str:
    state = hashlib.sha256()
    for tensor in tensors.values():
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()[:16]
