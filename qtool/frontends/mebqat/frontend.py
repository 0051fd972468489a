"""MEBQAT (Youn et al., ECCV 2022, arXiv 2207.10188): one model for every bit-width.

1. The float network: `weights`, or `float_epochs` of training, or as the seed initialised it.
2. Training on tasks (`qtool.frontends.mebqat.tasks`, `step`): pairs of weight and activation
   bits of the whole network; weights, steps and BatchNorm's factors are shared by all.
3. BatchNorm's statistics at every pair (`qtool.training.statistics`), which the released code
   takes from the test batch instead: deployed modules have no batch.

Afterwards the network computes at any pair of its candidates: `qtool eval` measures all.

Ours beyond the paper: tensors between layers (residual, pooling, output) carry learned 8-bit
grids where inputs are integers, since the device has no floats. Candidates of 16 bits are
float16, which runtimes have, not the paper's 16-bit integers, which no runtime has. The
released LSQ has 2^b codes for activations, a bug: here 2^b - 1. Steps are shared by all
bit-widths as published (``shared_steps=false``: a step each).
"""

from torch import nn

from qtool.core.cost import FLOAT_BITS
from qtool.core.pairs import default_pair, pair_name
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits
from qtool.data.batches import Batch, Batches
from qtool.data.images import DataSet
from qtool.frontends.float_network import make_float
from qtool.frontends.joint_state import search_start
from qtool.frontends.mebqat.save import save_network
from qtool.frontends.mebqat.step import pairs_step
from qtool.frontends.mebqat.tasks import TaskBatches, Tasked, forced_tasks
from qtool.networks import check_network, load_float, quant_spec
from qtool.nn.control import select_pair
from qtool.nn.prepare.prepare import prepare
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import Config
from qtool.settings.mebqat import MebqatConfig
from qtool.settings.registry import config_as
from qtool.training.averages import Averages
from qtool.training.evaluation import accuracy
from qtool.training.frontend import Frontend
from qtool.training.ingredients import check_training, fit_grids, make_batches
from qtool.training.phase import Phase
from qtool.training.phases import run_phase
from qtool.training.schedules import schedule_of
from qtool.training.statistics import take_statistics


def check(config: Config, data: DataSet) -> None:
    """Refuse, before anything is written, what `train` would refuse."""
    config = config_as(config, MebqatConfig, "qtool train")
    config.require_consistent()
    check_training(config, data)
    check_network(config, data.shape, data.classes, config.weights)


def train(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    """Train at every pair; leaves float and model weights, and statistics, in `run`."""
    if not (resume and run.has_weights(Stage.FLOAT)):
        make_float(run, run.settings(MebqatConfig), data, progress, resume)
    if not (resume and run.has_weights(Stage.MODEL)):
        _train_pairs(run, data, progress, resume)


def _train_pairs(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    config = run.settings(MebqatConfig)
    batches, network = make_batches(config, data), load_float(run)
    model = prepare(network, quant_spec(config), run.input_shape)
    fit_grids(config, model, batches, config.calibration_images)
    update, losses = pairs_step(config, model)

    def step(tasked: Tasked[Batch], averages: Averages) -> str:
        update(losses, tasked, averages)
        return ""

    pairs = config.pairs()
    tasks = TaskBatches(
        batches, pairs, config.tasks, forced_tasks(pairs, config.force_narrowest)
    )
    phase = Phase(
        "pairs", config.epochs, model, [update.optimizer], step, schedule_of(config),
        ema=update.ema,
    )  # fmt: skip
    run_phase(phase, run, tasks, progress, resume)
    _finish(run, config, network, model, batches, data, progress)
    run.drop_checkpoint()


def _finish(
    run: Run,
    config: MebqatConfig,
    network: nn.Module,
    model: nn.Module,
    batches: Batches,
    data: DataSet,
    progress: Progress,
) -> None:
    """Take statistics at every pair, measure the two ends, save all; the model comes last."""
    default = default_pair(config.weight_candidates, config.activation_bits)
    take_statistics(model, batches, config.norm_batches, measured(config), progress)
    for bits in (FLOAT_BITS, default):
        select_pair(model, bits)
        result = accuracy(model, data.test)
        run.add_metrics(phase="pairs", bits=pair_name(bits), test_accuracy=result)
        progress.note(f"{pair_name(bits)}: test accuracy {result:.2f} %")
    save_network(run, network, model, default)


def measured(config: MebqatConfig) -> list[LayerBits]:
    """Return the pairs that statistics are taken at, the default one first.

    They are the candidates' pairs, float, and float weights on integer inputs, which are
    never trained and may be exported as float islands.
    """
    default = default_pair(config.weight_candidates, config.activation_bits)
    half_float = [
        LayerBits(FLOAT_BITS.weight, bits) for bits in config.activation_bits if bits <= 8
    ]
    return list(dict.fromkeys([default, *config.pairs(), FLOAT_BITS, *half_float]))


FRONTEND = Frontend(
    MebqatConfig, check, train, search_start, "qtool eval {run} --bits all{data}"
)
