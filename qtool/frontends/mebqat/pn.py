"""MEBQAT-PN (arXiv 2207.10188): prototypical networks whose embedding serves every bit-width.

1. A step has one training episode and M = 4 tasks, each the episode at a random pair of
   bit-widths (the inner loop varies bits, the outer loop data). The loss of a task is that of
   prototypical networks (`qtool.nn.prototypes`): prototypes and queries are embedded at its
   bits. A parameter's gradient is the mean over the tasks that used it, each element at most
   10 in size; then Adam.
   A pair is any of the candidates' with equal chance, floating point one of them, as in the
   released code.
2. Steps of the quantizers (LSQ) are shared by all bit-widths.
3. BatchNorm sees support and query images as one batch, as in the released code. Deployed it
   cannot: statistics are taken anew for every pair, on images of training classes.

Ablations (appendix, Table 7), by setting `inner_loop`:
joint   each of the M tasks has an episode of its own too
none    a step has one task, a pair and an episode drawn together, as PN is usually trained

Baselines, by setting `bits`: ``fp`` is PN, a pair such as ``w8a3`` PN + QAT. Their bit-widths
do not share steps, and those that were not trained get least-squares grids in the end.

Ours beyond the paper: the first layer has codes of 8 bits, which lose next to nothing on
pixels, where the paper leaves it in floating point; the embedding itself has 8 bits at integer
pairs, for the device multiplies it with the prototypes (`qtool adapt`).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NoReturn

from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.errors import UserError
from qtool.core.pairs import deployable
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits
from qtool.data.episodes import Episode, Task
from qtool.data.images import DataSet
from qtool.frontends.mebqat.adapt_pn import can_follow, check_pn
from qtool.frontends.mebqat.episode_accuracy import EmbeddedEpisodes, transductive_accuracy
from qtool.frontends.mebqat.episode_table import tested_pairs
from qtool.frontends.mebqat.episode_training import (
    check_episodes,
    first_grids,
    gradient_rule,
    make_tasks,
    make_test_draws,
    save_trained,
)
from qtool.frontends.mebqat.tasks import Tasked
from qtool.networks import build_float, check_embedding, load_adaptive, quant_spec
from qtool.nn.control import PairSelector, select_pair
from qtool.nn.prepare.prepare import prepare
from qtool.nn.prototype_head import output_quantizer
from qtool.nn.prototypes import prototype_logits, prototypes
from qtool.nn.shared_prefix import SharedPrefix
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import Config
from qtool.settings.episodes import PnConfig
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
    config = config_as(config, PnConfig, "qtool train")
    check_pn(config)
    check_episodes(config, data, plan(config)[0])
    check_embedding(config, data.shape, data.classes)


def plan(config: PnConfig) -> tuple[int, int]:
    """Return how many episodes a step has, and at how many pairs each is passed."""
    if config.pair is not None or config.inner_loop == "none":
        return 1, 1
    return (config.tasks, 1) if config.inner_loop == "joint" else (1, config.tasks)


def pn_step(config: PnConfig, model: nn.Module) -> tuple[Update, Losses[Tasked[Episode]]]:
    """Return the step on the tasks of a batch, and their losses.

    Args:
        config: the recipe.
        model: the prepared embedding.
    """
    shared, passes = SharedPrefix(model, float_tensors=True), plan(config)[1]
    select = PairSelector(model)

    def runs(x: Tensor) -> AbstractContextManager[Callable[[], Tensor]]:
        # What is computed once has its gradient behind all passes of one episode.
        return shared.passes(x) if passes > 1 else nullcontext(partial(model, x))

    def losses(tasked: Tasked[Episode]) -> Iterator[Pass]:
        model.train()
        for task in tasked.batch.tasks():
            with runs(task.images) as run:
                for bits in tasked.pairs[task.place * passes :][:passes]:
                    select(bits)
                    yield episode_pass(run(), task, config.ways)

    return Update(config, model, config.lr, gradient_rule(config, model, 1)), losses


def episode_pass(embedded: Tensor, task: Task, ways: int) -> Pass:
    """Return the loss of prototypical networks (Snell et al. 2017, Algorithm 1).

    Args:
        embedded: (N, D), of the support images and then of the queries.
        task: the episode.
        ways: its classes.
    """
    embedded, count = embedded.float(), len(task.support)
    centres = prototypes(embedded[:count], task.support_labels, ways)
    logits, labels = prototype_logits(embedded[count:], centres), task.query_labels
    return Pass(functional.cross_entropy(logits, labels), logits, labels)


def train(run: Run, data: DataSet, progress: Progress, resume: bool) -> Table:
    """Train at every pair, or at one; leaves float and model weights, and statistics.

    Returns:
        The accuracy on test episodes, to print.
    """
    if not (resume and run.has_weights(Stage.MODEL)):
        _train(run, data, progress, resume)
    config = run.settings(PnConfig)
    return tested_pairs(run, config, PrototypeTester(run, data), progress, resume)


def _train(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    config, network = run.settings(PnConfig), build_float(run)
    model = prepare(network, quant_spec(config), run.input_shape)
    first_grids(config, model, data)
    update, losses = pn_step(config, model)

    def step(tasked: Tasked[Episode], averages: Averages) -> str:
        update(losses, tasked, averages)
        return ""

    episodes, passes = plan(config)
    tasks = make_tasks(config, data, episodes, episodes * passes)
    phase = Phase(
        "episodes", config.epochs, model, [update.optimizer], step, schedule_of(config),
        ema=update.ema,
    )  # fmt: skip
    run_phase(phase, run, tasks, progress, resume)
    save_trained(run, network, model, data, progress)


class PrototypeTester:
    """Tests prototypes: an `EpisodeTester`.

    Args:
        run: trained.
        data: test classes.
    """

    def __init__(self, run: Run, data: DataSet) -> None:
        self._images, self._model = data.test, load_adaptive(run)
        self._draws = make_test_draws(run.settings(PnConfig), data)
        self._has_files = can_follow(run.config)

    def deployed(
        self, bits: LayerBits, episodes: int
    ) -> tuple[EpisodeAccuracy, EpisodeAccuracy | None]:
        """Return the accuracy of the nearest prototype, and that of the exported file."""
        select_pair(self._model, bits)
        found = EmbeddedEpisodes(self._model, self._images, self._draws, episodes)
        if not (self._has_files and deployable(bits)):
            return found.nearest(), None
        return found.nearest(), found.on_device(output_quantizer(self._model))

    def transductive(self, bits: LayerBits, episodes: int) -> EpisodeAccuracy:
        """Return the accuracy with BatchNorm on each episode's images."""
        select_pair(self._model, bits)
        return transductive_accuracy(self._model, self._images, self._draws, episodes)


def search_start(run: Run) -> NoReturn:
    """Refuse: a pair is chosen for the whole network here."""
    raise UserError(
        f"run {run.folder} was made by frontend mebqat_pn, which has one pair of bits for all "
        "layers: give classes and a pair with qtool adapt; search bits by layer with frontend "
        "metamix"
    )


FRONTEND = Frontend(
    PnConfig, check, train, search_start,
    "qtool adapt {run} --support DIR --bits {bits} -o ADAPTED", PrototypeTester,
)  # fmt: skip
