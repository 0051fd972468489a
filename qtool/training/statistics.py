"""BatchNorm statistics of pairs of bits: what makes a bitwidth-adaptive network deployable.

The released code of adaptive methods normalises test batches with their own statistics, which
no module that takes one image can; here they are averaged over training images, once for each
pair, on weights that no longer change. Each batch passes the part that no bits change once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qtool.core.errors import UserError
from qtool.core.pairs import pair_key
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits
from qtool.data.batch_source import BatchSource
from qtool.data.batches import Batch
from qtool.networks import load_prepared
from qtool.nn.control import select_pair
from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.norm_rows import give_rows, switches
from qtool.nn.seeded import seeded
from qtool.nn.shared_prefix import SharedPrefix
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.training.evaluation import device_of, fresh_statistics, recalibrate_norms


@torch.no_grad()
def take_statistics(
    model: nn.Module,
    batches: BatchSource[Batch],
    count: int,
    pairs: Sequence[LayerBits],
    progress: Progress,
) -> None:
    """Give BatchNorms a row of statistics for each of `pairs`, the default one first.

    Norms of the part that no bits change stay single: theirs are the same at every pair.

    Args:
        model: prepared, its norms without rows.
        batches: of training images, augmented as in training.
        count: of batches.
        pairs: two or more.
        progress: shows what is done.
    """
    prefix = SharedPrefix(model, float_tensors=True)
    keys = tuple(map(pair_key, pairs))
    give_rows(model, keys, is_exact=True, without=prefix.norms())
    rows = [norm for switch in switches(model) for norm in switch.modules()]
    model.train()
    with fresh_statistics([*rows, *prefix.norms()]), seeded(batches.seed):
        progress.start("statistics", count * len(pairs))
        device = device_of(model)
        for _, (x, _labels) in zip(range(count), batches.epoch(0), strict=False):
            with prefix.passes(x.to(device)) as run:
                for bits in pairs:
                    select_pair(model, bits)
                    run()
                    progress.step(pair_key(bits))


def statistics_of(model: nn.Module, default: str) -> dict[str, Tensor]:
    """Return the rows that `take_statistics` made but the default one: ``w4a4/NAME``.

    Args:
        model: after it.
        default: key of the row that the model's own state holds.
    """
    return {
        f"{key}/{path}.{name}": norm.get_buffer(name)
        for path, switch in model.named_modules()
        if isinstance(switch, SwitchNorm)
        for key, norm in zip(switch.bank.keys, switch.norms, strict=True)
        if key != default
        for name in _STATISTICS
    }


_STATISTICS = ("running_mean", "running_var")


def add_statistics(run: Run, bits: LayerBits, batches: BatchSource[Batch], count: int) -> None:
    """Take the statistics of `run` at one more pair, or anew, and keep them in it.

    Args:
        run: has statistics of other pairs.
        bits: the pair.
        batches: of images as in training.
        count: of batches.

    Raises:
        UserError: bits that were not trained; a run without statistics of pairs.
    """
    if not run.has_weights(Stage.NORMS):
        raise UserError(
            f"run {run.folder} keeps no statistics of pairs of bits: its BatchNorms have what "
            "they were trained with"
        )
    known, model = run.load_weights(Stage.NORMS), load_prepared(run)
    select_pair(model, bits)
    recalibrate_norms(model, batches, count)
    state, key = model.state_dict(), pair_key(bits)
    names = {name.partition("/")[2] for name in known}
    new = {f"{key}/{name}": state[name].clone() for name in sorted(names)}
    run.save_weights(Stage.NORMS, {**known, **new})
