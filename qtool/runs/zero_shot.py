"""What a run keeps of pairs that it was never trained at (`qtool.core.zero_shot`).

``zero_shot.safetensors`` holds BatchNorm's tensors at each of them, ``w5a5/NAME``, and in its
mark a `ZeroShot` each. Steps are no part of it: they follow from the trained ones.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qtool.core.choose import Serves
from qtool.core.errors import UserError
from qtool.core.pairs import pair_key
from qtool.core.records import from_json, to_json
from qtool.core.selection import LayerBits
from qtool.core.zero_shot import ZeroShot
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.tensor_file import read_mark

if TYPE_CHECKING:  # exporting a run again needs no torch
    from torch import Tensor

_PAIRS = "pairs"


def takes_pairs(run: Run) -> bool:
    """True where BatchNorm's statistics at further pairs of bits have a place in `run`.

    It keeps those of pairs, or its pairs share one row, beside which others may stand.
    """
    return run.has_weights(Stage.NORMS) or run.config.norms_serve is not Serves.WHOLE


def zero_shot_pairs(run: Run) -> dict[LayerBits, ZeroShot]:
    """Return the pairs that `run` has and was never trained at, in the order they came.

    Raises:
        UserError: the file is damaged.
    """
    if not run.has_weights(Stage.ZERO_SHOT):
        return {}
    path = run.path(Stage.ZERO_SHOT.file)
    try:
        pairs = [from_json(ZeroShot, each) for each in read_mark(path)[_PAIRS]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: {error!r}: delete it, and calibrate again"
        ) from None
    return {LayerBits(*pair.bits): pair for pair in pairs}


def save_zero_shot(run: Run, tensors: Mapping[str, "Tensor"], pair: ZeroShot) -> None:
    """Keep `tensors` of BatchNorms, by name in the network, for `pair`."""
    kept = {**zero_shot_pairs(run), LayerBits(*pair.bits): pair}
    key = pair_key(LayerBits(*pair.bits))
    known = run.load_weights(Stage.ZERO_SHOT) if run.has_weights(Stage.ZERO_SHOT) else {}
    state = {**known, **{f"{key}/{name}": tensor for name, tensor in tensors.items()}}
    run.save_weights(
        Stage.ZERO_SHOT, state, **{_PAIRS: [to_json(each) for each in kept.values()]}
    )
