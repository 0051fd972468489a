"""What one adaptive model saves against one model for every pair of bit-widths.

Storage, N pairs:

    1 - bytes(adaptive) / sum over the pairs of bytes(dedicated at this pair)

The adaptive model is the tensors that a run keeps for all its pairs: float weights, norms with
the statistics of every pair, steps of all candidates. A dedicated one is its weights in as
many bits as they have, and in float32 its biases, four vectors a BatchNorm and one row of the
quantizers' parameters. With every model as large as the adaptive one it is 1 - 1 / N.

Back-propagations, M tasks a step:

    1 - (M * steps) / (N * steps) = 1 - M / N

with as many steps of training for each dedicated model as the adaptive one has. (A step of
MEBQAT-MAML has as many tasks with one pair as with all: 1 - 1 / N. One of joint training has
as many as precisions: nothing is saved.)

MEBQAT (arXiv 2207.10188) claims 98.7 % and 94.7 %, and does not say how it counts. Our
reading: these are 1 - 1 / 75 and 1 - 4 / 75, with the 75 pairs of DoReFa in its Table 6.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from qtool.checking.grid_record import Savings
from qtool.core.choose import given_bits
from qtool.core.selection import LayerBits, Selection
from qtool.data.images import DataSet
from qtool.nn.control import quant_layers, quantizers
from qtool.nn.norm_rows import active_norms, layer_candidates
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.coquant import CoquantConfig
from qtool.settings.episodes import EpisodeConfig
from qtool.settings.mebqat import MebqatConfig
from qtool.training.ingredients import make_batches

_FLOAT_BYTES = 4
# Mean, variance, weight and bias.
_NORM_VECTORS = 4
# What pairs are exported from; counters of BatchNorm's batches do not count.
_STAGES = (Stage.MODEL, Stage.CORRECTIONS, Stage.NORMS)
_COUNTER = "num_batches_tracked"


def savings_of(
    run: Run, model: nn.Module, pairs: Sequence[LayerBits], data: DataSet
) -> Savings:
    """Return what `run` saves (see the module).

    Args:
        run: trained.
        model: its network, `qtool.networks.load_adaptive`.
        pairs: what one model each would be trained for.
        data: what it was trained on.
    """
    count, adaptive = len(pairs), adaptive_bytes(run)
    dedicated = sum(dedicated_bytes(model, pair) for pair in pairs)
    storage = (adaptive, dedicated, _saved(adaptive, dedicated), _saved(1, count))
    if (trained := _passes(run, data)) is None:
        return Savings(count, *storage)
    tasks, one, steps = trained
    mine, theirs = tasks * steps, count * one * steps
    return Savings(count, *storage, mine, theirs, _saved(mine, theirs))


def _passes(run: Run, data: DataSet) -> tuple[int, int, int] | None:
    """Return back-propagations a step, those of a dedicated model, and steps.

    None where no tasks are drawn.
    """
    config = run.config
    if isinstance(config, EpisodeConfig) and config.pair is None:
        return *config.passes, config.epochs * config.episodes
    if not isinstance(config, MebqatConfig | CoquantConfig):
        return None
    tasks = config.tasks if isinstance(config, MebqatConfig) else len(config.pairs())
    return tasks, 1, config.epochs * len(make_batches(config, data))


def adaptive_bytes(run: Run) -> int:
    """Return the bytes of the tensors that every pair of `run` is exported from."""
    tensors = (
        (name, tensor)
        for stage in _STAGES
        if run.has_weights(stage)
        for name, tensor in run.load_weights(stage).items()
    )
    return sum(_bytes(tensor) for name, tensor in tensors if not name.endswith(_COUNTER))


def dedicated_bytes(model: nn.Module, bits: LayerBits) -> int:
    """Return the bytes of a model that has the bits of one pair only.

    Args:
        model: prepared for all pairs.
        bits: the pair; the first and the last layer may have bits of their own.
    """
    chosen = given_bits(layer_candidates(model), Selection(default=bits))
    layers = quant_layers(model)
    weights = sum(
        (layer.layer.weight.numel() * chosen[layer.name].weight + 7) // 8 for layer in layers
    )
    biases = sum(0 if layer.bias is None else layer.bias.numel() for layer in layers)
    norms = sum(_NORM_VECTORS * norm.num_features for norm in active_norms(model))
    rows = sum(
        parameter.numel() // quantizer.bank.rows
        for quantizer in quantizers(model)
        for parameter in quantizer.parameters(recurse=False)
    )
    return weights + _FLOAT_BYTES * (biases + norms + rows)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _saved(mine: int, theirs: int) -> float:
    """Return how much less `mine` is than `theirs`, in percent."""
    return 100 * (1 - mine / theirs)
