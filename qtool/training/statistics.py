"""BatchNorm statistics of pairs of bits: what makes a bitwidth-adaptive network deployable.

The released code of adaptive methods normalises test batches with their own statistics, which
no module that takes one image can; here they are averaged over training images, once for each
pair, on weights that no longer change. Each batch passes the part that no bits change once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qtool.core.choose import Serves
from qtool.core.pairs import pair_key
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits, Selection
from qtool.data.batch_source import BatchSource
from qtool.data.batches import Batch
from qtool.models.normalised import ConstantNorm
from qtool.nn.control import select, select_pair
from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.norm_rows import give_rows, settle
from qtool.nn.seeded import seeded
from qtool.nn.shared_prefix import SharedPrefix
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.training.evaluation import device_of, fresh_statistics


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
    give_rows(model, tuple(map(pair_key, pairs)), Serves.WHOLE, prefix.norms())
    average_statistics(model, prefix, batches, count, pairs, progress)


@torch.no_grad()
def average_statistics(
    model: nn.Module,
    prefix: SharedPrefix,
    batches: BatchSource[Batch],
    count: int,
    pairs: Sequence[LayerBits],
    progress: Progress,
) -> None:
    """Replace the statistics of every row at `pairs` by plain averages over batches.

    A norm without rows averages over all pairs alike.

    Args:
        model: prepared.
        prefix: of `model`: its part that is the same at all `pairs`.
        batches: of training images, augmented as in training.
        count: of batches.
        pairs: each at the rows of its own.
        progress: shows what is done.
    """
    norms = [module for module in model.modules() if not isinstance(module, ConstantNorm)]
    model.train()
    with fresh_statistics(norms), seeded(batches.seed):
        progress.start("statistics", count * len(pairs))
        device = device_of(model)
        for _, (x, _labels) in zip(range(count), batches.epoch(0), strict=False):
            with prefix.passes(x.to(device)) as run:
                for bits in pairs:
                    select_pair(model, bits)
                    run()
                    progress.step(pair_key(bits))


def rows_of(model: nn.Module, default: str) -> dict[str, Tensor]:
    """Return the rows of norms but the default one: ``w4a4/NAME``.

    Statistics always, and of the parameters those that differ from the default row's.

    Args:
        model: prepared, its norms with rows.
        default: key of the row that the model's own state holds.
    """
    found: dict[str, Tensor] = {}
    for path, switch in model.named_modules():
        if isinstance(switch, SwitchNorm):
            own = switch.norms[switch.bank.row(default)].state_dict()
            for key, norm in zip(switch.bank.keys, switch.norms, strict=True):
                for name, tensor in norm.state_dict().items():
                    differs = name in _PARAMETERS and not tensor.equal(own[name])
                    if key != default and (name in STATISTICS or differs):
                        found[f"{key}/{path}.{name}"] = tensor
    return found


_PARAMETERS = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")


def save_rows(run: Run, model: nn.Module, default: LayerBits) -> None:
    """Save the norms' rows and, last, the model at `default`, whose rows are all that is left.

    Args:
        run: gets both.
        model: trained, its norms with rows where its pairs have some.
        default: the pair that the model's own state holds.
    """
    if rows := rows_of(model, pair_key(default)):
        run.save_weights(Stage.NORMS, rows)
    select(model, Selection())
    settle(model)
    run.save_weights(Stage.MODEL, model.state_dict())
