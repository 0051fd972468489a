"""MEBQAT-MAML (arXiv 2207.10188): weights that fine-tune to new classes at any bit-width.

1. A task is an episode and a random pair of bit-widths. Its inner loop takes SGD steps on the
   support images, at these bits (`qtool.frontends.mebqat.inner_loop`); its gradient is that of
   the queries' loss at the adapted values, first order.
2. The outer loop: the mean over the tasks that used a parameter, each element at most 10 in
   size; then Adam. A pair is any of the candidates' with equal chance.
3. BatchNorm stays out of the inner loop, its gamma is 1, and it normalises support and query
   images each with their own statistics.

Baselines, by setting `bits`: ``fp`` is FOMAML, a pair such as ``w3a8`` FOMAML + QAT. Their
bit-widths do not share steps, and those that were not trained get least-squares grids.

Deployed, a network has no batch of queries: BatchNorm's statistics are then those of the
support images after fine-tuning; accuracies are given with both. The released code forgets to
adapt the quantizers' steps in the inner loop; here they are adapted. Ours beyond the paper:
the first and the last layer have codes of 8 bits; the paper leaves them in floating point.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch
from rich.table import Table
from torch import nn
from torch.nn import functional

from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits
from qtool.data.batches import to_batch
from qtool.data.episodes import Episode
from qtool.data.images import DataSet
from qtool.frontends.mebqat.adapt_maml import has_file
from qtool.frontends.mebqat.episode_accuracy import TEST_EPOCH, batch_statistics
from qtool.frontends.mebqat.episode_table import tested_pairs
from qtool.frontends.mebqat.episode_training import (
    check_episodes,
    first_grids,
    gradient_rule,
    make_tasks,
    make_test_draws,
    save_trained,
)
from qtool.frontends.mebqat.inner_loop import (
    fine_tuned,
    first_order,
    kept_state,
    settle_on,
)
from qtool.frontends.mebqat.tasks import Tasked
from qtool.networks import build_float, check_network, load_adaptive, quant_spec
from qtool.nn.control import PairSelector, select_pair
from qtool.nn.norm_rows import settle
from qtool.nn.prepare.prepare import prepare
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import Config
from qtool.settings.episodes import MamlConfig
from qtool.settings.registry import config_as
from qtool.training.averages import Averages
from qtool.training.episode_tests import EpisodeAccuracy
from qtool.training.frontend import Frontend
from qtool.training.phase import Phase
from qtool.training.phases import run_phase
from qtool.training.schedules import schedule_of
from qtool.training.update import Losses, Pass, Update


def check(config: Config, data: DataSet) -> None:
    """Refuse, before anything is written, what `train` would refuse."""
    config = config_as(config, MamlConfig, "qtool train")
    check_episodes(config, data, config.tasks)
    check_network(config, data.shape, config.ways, "")


def maml_step(config: MamlConfig, model: nn.Module) -> tuple[Update, Losses[Tasked[Episode]]]:
    """Return the step on the tasks of a batch, and their losses.

    Args:
        config: the recipe.
        model: prepared.
    """
    select = PairSelector(model)

    def losses(tasked: Tasked[Episode]) -> Iterator[Pass]:
        model.train()
        for task in tasked.batch.tasks():
            select(tasked.pairs[task.place])
            values = fine_tuned(
                model, task.support, task.support_labels, config.inner_steps, config.inner_lr
            )
            logits = first_order(model, task.query, values)
            loss = functional.cross_entropy(logits.float(), task.query_labels)
            yield Pass(loss, logits, task.query_labels)

    passes = config.tasks // config.accumulate
    return Update(config, model, config.lr, gradient_rule(config, model, passes)), losses


def train(run: Run, data: DataSet, progress: Progress, resume: bool) -> Table:
    """Train at every pair, or at one; leaves float and model weights, and statistics.

    Returns:
        The accuracy on test episodes, to print.
    """
    if not (resume and run.has_weights(Stage.MODEL)):
        _train(run, data, progress, resume)
    config = run.settings(MamlConfig)
    return tested_pairs(run, config, FineTuneTester(run, data), progress, resume)


def _train(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    config, network = run.settings(MamlConfig), build_float(run)
    model = prepare(network, quant_spec(config), run.input_shape)
    first_grids(config, model, data)
    update, losses = maml_step(config, model)

    def step(tasked: Tasked[Episode], averages: Averages) -> str:
        update(losses, tasked, averages)
        return ""

    tasks = make_tasks(config, data, config.tasks, config.tasks)
    phase = Phase(
        "episodes", config.epochs, model, [update.optimizer], step, schedule_of(config),
        ema=update.ema,
    )  # fmt: skip
    run_phase(phase, run, tasks, progress, resume)
    save_trained(run, network, model, data, progress)


class FineTuneTester:
    """Tests fine-tuning: an `EpisodeTester`.

    Args:
        run: trained.
        data: test classes.
    """

    def __init__(self, run: Run, data: DataSet) -> None:
        self._run, self._images = run, data.test
        self._config = run.settings(MamlConfig)
        self._draws = make_test_draws(self._config, data)

    def deployed(
        self, bits: LayerBits, episodes: int
    ) -> tuple[EpisodeAccuracy, EpisodeAccuracy | None]:
        """Return the accuracy of what `qtool adapt` makes, in torch and as integers.

        Both are the same: evaluation in torch computes what the device does.
        """
        found = self._accuracy(bits, episodes, lambda _model: nullcontext())
        return found, found if has_file(self._config, bits) else None

    def transductive(self, bits: LayerBits, episodes: int) -> EpisodeAccuracy:
        """Return the accuracy with BatchNorm on the queries of each episode."""
        return self._accuracy(bits, episodes, batch_statistics)

    def _accuracy(
        self,
        bits: LayerBits,
        episodes: int,
        norms: Callable[[nn.Module], AbstractContextManager[None]],
    ) -> EpisodeAccuracy:
        model = load_adaptive(self._run)
        select_pair(model, bits)
        settle(model)
        return EpisodeAccuracy.of([self._share(model, n, norms) for n in range(episodes)])

    def _share(
        self,
        model: nn.Module,
        number: int,
        norms: Callable[[nn.Module], AbstractContextManager[None]],
    ) -> float:
        """Return the share of queries that are right in test episode `number`."""
        config, size = self._config, self._draws.size
        rows = self._draws.rows(TEST_EPOCH, number)
        parts = (rows[:, : size.shots], rows[:, size.shots :])
        support, query = (to_batch(self._images, part.reshape(-1))[0] for part in parts)
        labels = torch.arange(size.ways)
        known, wanted = (labels.repeat_interleave(part.shape[1]) for part in parts)
        with kept_state(model):
            model.train()
            values = fine_tuned(model, support, known, config.inner_steps, config.inner_lr)
            settle_on(model, support, values)
            with norms(model), torch.no_grad():
                return float((model(query).argmax(1) == wanted).double().mean())


def search_start(run: Run) -> NoReturn:
    """Refuse: a pair is chosen for the whole network here."""
    raise UserError(
        f"run {run.folder} was made by frontend mebqat_maml, which has one pair of bits for "
        "all layers: give classes and a pair with qtool adapt; search bits by layer with "
        "frontend metamix"
    )


FRONTEND = Frontend(
    MamlConfig, check, train, search_start,
    "qtool adapt {run} --support DIR --bits {bits} -o ADAPTED", FineTuneTester,
)  # fmt: skip
