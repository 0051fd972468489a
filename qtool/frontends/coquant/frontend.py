"""CoQuant (Sun et al., arXiv 2103.01435) and its baselines: one network, several precisions.

A precision b is b bits of weights and inputs. `qtool.settings.joint_methods` says what each
method is; Double Rounding (arXiv 2502.01199) is the strongest later one that we know.

1. The float network: `weights`, or `float_epochs` of training, or as the seed initialised it.
2. Joint training (`qtool.frontends.coquant.step`): weights are shared by all precisions,
   BatchNorm and clipping values are rows, one a precision, as the method has it.
3. BatchNorm's statistics at every precision, on weights that no longer change.

Afterwards the network computes at any of its precisions, and at mixed ones: each layer takes
the rows of its own bits.

Ours beyond the paper: tensors between layers (residual, pooling, output) carry learned 8-bit
grids, which all precisions share, since the device has no floats; the first and the last layer
keep their own bits at every precision, and the first one's BatchNorm is shared where nothing
before it changes; a teacher's swapped-in block gets the student's gradient too. Weights of 8
bits of Any-Precision are odd integers of nine bits, which no integer module holds: that
precision is trained and evaluated, and refused at export.
"""

from torch import nn

from qtool.core.pairs import pair_key, pair_name
from qtool.core.progress import Progress
from qtool.data.batch_source import BatchSource
from qtool.data.batches import Batch, Batches
from qtool.data.images import DataSet
from qtool.frontends.coquant.blocks import Blocks, find_blocks
from qtool.frontends.coquant.step import joint_step
from qtool.frontends.coquant.swap import SwapBatches, Swapped
from qtool.frontends.float_network import make_float
from qtool.frontends.joint_state import search_start
from qtool.networks import build_network, check_network, load_float, quant_spec
from qtool.nn.control import select_pair
from qtool.nn.norm_rows import give_rows
from qtool.nn.prepare.prepare import prepare
from qtool.nn.shared_prefix import SharedPrefix
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import Config
from qtool.settings.coquant import CoquantConfig
from qtool.settings.joint_methods import METHODS
from qtool.settings.registry import config_as
from qtool.training.averages import Averages
from qtool.training.evaluation import accuracy
from qtool.training.frontend import Frontend
from qtool.training.ingredients import check_training, fit_grids, make_batches
from qtool.training.phase import Phase
from qtool.training.phases import run_phase
from qtool.training.schedules import schedule_of
from qtool.training.statistics import average_statistics, save_rows


def check(config: Config, data: DataSet) -> None:
    """Refuse, before anything is written, what `train` would refuse."""
    config = config_as(config, CoquantConfig, "qtool train")
    config.require_consistent()
    config.require_joint()
    check_training(config, data)
    check_network(config, data.shape, data.classes, config.weights)
    network = build_network(config, data.shape, data.classes)
    find_blocks(network, prepare(network, quant_spec(config), data.shape), config.blocks)


def train(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    """Train at every precision; leaves float and model weights, and norms, in `run`."""
    if not (resume and run.has_weights(Stage.FLOAT)):
        make_float(run, run.settings(CoquantConfig), data, progress, resume)
    if not (resume and run.has_weights(Stage.MODEL)):
        _train_joint(run, data, progress, resume)


def _train_joint(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    config = run.settings(CoquantConfig)
    batches, network = make_batches(config, data), load_float(run)
    model = prepare(network, quant_spec(config), run.input_shape)
    fit_grids(config, model, batches, config.calibration_images)
    blocks = find_blocks(network, model, config.blocks)
    prefix = with_norms(config, model)
    update, losses = joint_step(config, model, prefix, blocks)

    def step(swapped: Swapped[Batch], averages: Averages) -> str:
        update(losses, swapped, averages)
        return ""

    phase = Phase(
        "joint", config.epochs, model, [update.optimizer], step, schedule_of(config),
        ema=update.ema,
    )  # fmt: skip
    run_phase(phase, run, swapping(config, batches, blocks), progress, resume)
    _finish(run, model, batches, data, progress)
    run.drop_checkpoint()


def with_norms(config: CoquantConfig, model: nn.Module) -> SharedPrefix:
    """Give a prepared `model` the BatchNorms of the recipe's method.

    Returns:
        The part of `model` that no precision changes, which has none of its own.
    """
    prefix = SharedPrefix(model)
    if not METHODS[config.method].shared_norms:
        keys = tuple(map(pair_key, config.pairs()))
        give_rows(model, keys, config.norms_serve, prefix.norms())
    return prefix


def swapping(
    config: CoquantConfig, batches: BatchSource[Batch], blocks: Blocks
) -> SwapBatches[Batch]:
    """Return `batches` with the swaps of the recipe's method."""
    lower = config.pairs()[1:] if METHODS[config.method].swaps else []
    students = [bits.activation for bits in lower]
    return SwapBatches(batches, config.epochs, config.swap_start, len(blocks), students)


def _finish(
    run: Run, model: nn.Module, batches: Batches, data: DataSet, progress: Progress
) -> None:
    """Take statistics at every precision, measure it, save all; the model comes last."""
    config = run.settings(CoquantConfig)
    pairs, prefix = config.pairs(), SharedPrefix(model)
    average_statistics(model, prefix, batches, config.norm_batches, pairs, progress)
    for bits in pairs:
        select_pair(model, bits)
        result = accuracy(model, data.test)
        run.add_metrics(phase="joint", bits=pair_name(bits), test_accuracy=result)
        progress.note(f"{pair_name(bits)}: test accuracy {result:.2f} %")
    save_rows(run, model, pairs[0])


FRONTEND = Frontend(
    CoquantConfig, check, train, search_start, "qtool eval {run} --bits all{data}"
)
