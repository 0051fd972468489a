"""What methods that train on episodes share: draws, checks, first grids, results."""

import torch
from torch import nn

from qtool.core.cost import FLOAT_BITS
from qtool.core.errors import UserError
from qtool.core.pairs import default_pair, deployable
from qtool.core.progress import Progress
from qtool.core.selection import Selection
from qtool.data.episodes import Episode, EpisodeDraws, Episodes, EpisodeSize
from qtool.data.images import DataSet
from qtool.frontends.mebqat.save import save_network
from qtool.frontends.mebqat.step import banks_of
from qtool.frontends.mebqat.tasks import TaskBatches
from qtool.networks import bits_content
from qtool.nn.control import (
    activation_quantizers,
    bit_costs,
    quantizers,
    select_pair,
    turn_off,
)
from qtool.parallel.job import current
from qtool.runs.run import Run
from qtool.settings.episodes import EpisodeConfig
from qtool.training.device import training_device
from qtool.training.evaluation import recalibrate_norms
from qtool.training.gradients import GradientRule, MeanOverPasses, MeanOverUses
from qtool.training.ingredients import fit_grids, make_batches
from qtool.training.statistics import take_statistics


def make_tasks(
    config: EpisodeConfig, data: DataSet, episodes: int, pairs: int
) -> TaskBatches[Episode]:
    """Return the batches of training: episodes, and the pairs that they are trained at.

    Args:
        config: the recipe.
        data: its images.
        episodes: of a step.
        pairs: of a step.

    Raises:
        UserError: too few classes or images, or more parts of a step than episodes.
    """
    images = data.train.head(config.train_images or None)
    if episodes % config.accumulate:
        raise UserError(
            f"recipe setting accumulate: got {config.accumulate}, but a step has {episodes} "
            f"episode{'s' * (episodes > 1)}, which it must divide"
        )
    size = EpisodeSize(config.ways, config.shots, config.queries)
    draws = EpisodeDraws(images.labels, size, config.seed, f"data set {data.name}, training")
    source = Episodes(images, draws, config.episodes, episodes)
    forced = () if config.pair is None else (config.pair,) * pairs
    return TaskBatches(source, config.pairs(), pairs, forced)


def make_test_draws(config: EpisodeConfig, data: DataSet) -> EpisodeDraws:
    """Return which images the test episodes have.

    Raises:
        UserError: too few classes or images.
    """
    size = EpisodeSize(config.test_ways, config.shots, config.test_queries)
    return EpisodeDraws(data.test.labels, size, config.seed, f"data set {data.name}, test")


def check_episodes(config: EpisodeConfig, data: DataSet, episodes: int) -> None:
    """Refuse, before anything is written, what training on episodes would refuse."""
    if not data.unseen:
        raise UserError(
            f"data set {data.name}: its test classes are those of training; methods that "
            "learn new classes need omniglot_fewshot, miniimagenet_fewshot or, with --data "
            "DIR, imagefolder_fewshot"
        )
    config.require_consistent()
    if current().size > 1:
        raise UserError(
            f"frontend {config.frontend} trains in one process, this job has "
            f"{current().size}: BatchNorm's statistics are those of one episode"
        )
    training_device(config)
    make_tasks(config, data, episodes, 1)
    make_batches(config, data)
    make_test_draws(config, data)


def gradient_rule(config: EpisodeConfig, model: nn.Module, passes: int) -> GradientRule:
    """Return what makes one gradient of the `passes` on a part of a step.

    MEBQAT's mean over the tasks that used a parameter, clamped; at one pair the plain mean.
    """
    if config.pair is None:
        return MeanOverUses(model, config.clamp, banks_of(model))
    return MeanOverPasses(passes)


def first_grids(config: EpisodeConfig, model: nn.Module, data: DataSet) -> None:
    """Fit grids of `model` to the first training images.

    BatchNorm sees them before: a network that nobody trained has none of its statistics.
    """
    batches = make_batches(config, data)
    turn_off(model)
    recalibrate_norms(model, batches, 1)
    fit_grids(config, model, batches, config.calibration_images)


@torch.no_grad()
def untrained_grids(config: EpisodeConfig, model: nn.Module, data: DataSet) -> None:
    """Fit the grids that were not trained, where one pair was, to the trained weights."""
    if config.pair is None:
        return
    select_pair(model, config.pair)
    trained = [
        (tensor, quantizer.bits.index(quantizer.selected), tensor.clone())
        for quantizer in quantizers(model)
        if quantizer.selected is not None
        for tensor in quantizer.state_dict(keep_vars=True).values()
    ]
    first_grids(config, model, data)
    for tensor, row, before in trained:
        tensor[row] = before[row]
    for quantizer in activation_quantizers(model):
        quantizer.set_zero_points(quantizer.zero_point.tolist())


def save_trained(
    run: Run, network: nn.Module, model: nn.Module, data: DataSet, progress: Progress
) -> None:
    """Take statistics at every pair and save all; the model comes last.

    Args:
        run: gets float and model weights, statistics and, of one pair, its bits.
        network: what `model` was prepared from.
        model: trained.
        data: whose training images the statistics are from.
        progress: shows what is done.
    """
    config = run.settings(EpisodeConfig)
    untrained_grids(config, model, data)
    default = default_pair(config.weight_candidates, config.activation_bits)
    pairs = list(dict.fromkeys([default, *config.pairs(), FLOAT_BITS]))
    take_statistics(model, make_batches(config, data), config.norm_batches, pairs, progress)
    if config.pair is not None and deployable(config.pair):
        costs = bit_costs(model, run.input_shape, Selection(default=config.pair))
        run.save_bits(bits_content(costs))
    save_network(run, network, model, default)
    run.drop_checkpoint()
