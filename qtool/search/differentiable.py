"""Searches by gradient: MetaMix on its fixed meta-state, and DNAS, which trains weights along.

metamix  On each batch a bit-meta step (Eq. 1), then a step of alpha on the loss of Eq. 3 with
         weights and steps fixed (paper, Table 1, epoch 2). Alphas do not act on the weights,
         so those of several budgets are trained side by side on one meta-state.
         With ``fixed_meta_state=false`` weights and alpha are trained together on Eq. 3, from
         the meta-state (the paper's ablation, Figure 7 a).
         On jointly trained weights alpha alone is trained, and BatchNorm normalises with the
         batch: statistics belong to single selections.
dnas     (Wu et al. 2018, arXiv 1812.00090) From the float network with quantized weights: on
         each batch a step of the weights, then one of alpha, on a Gumbel softmax mixture whose
         temperature falls exponentially. For as many epochs as metamix takes, meta included.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import Module, functional

from qtool.data.batches import Batch
from qtool.frontends.metamix.bit_meta import bit_meta
from qtool.networks import build_prepared
from qtool.parallel.collectives import average_gradients
from qtool.search.bit_search import BitSearch, softmax
from qtool.search.fit import argmax, fit
from qtool.search.limits import Limit
from qtool.search.methods import Found, State, Task
from qtool.search.undisturbed import undisturbed
from qtool.training.averages import Averages
from qtool.training.ingredients import (
    CALIBRATION_IMAGES,
    fit_grids,
    make_batches,
    make_objective,
)
from qtool.training.losses import LogitsLoss, Objective
from qtool.training.phase import Phase
from qtool.training.phases import run_phase
from qtool.training.schedules import cosine
from qtool.training.transductive import follow_batches
from qtool.training.update import Losses, Pass, Update

# Temperatures of the Gumbel softmax at the first and the last batch.
_HOT, _COLD = 5.0, 0.5
# Alpha, (layers, branches), to how much of each branch a layer takes.
Mixture = Callable[[Tensor], Tensor]


def metamix(task: Task) -> list[Found]:
    """Alternate bit-meta and bit-search steps (Table 1, epoch 2), for all budgets at once."""
    config, model = task.config, task.model
    if task.is_joint:
        return _joint(task)
    if not config.fixed_meta_state:
        return [_unfixed(task, *budget) for budget in task.budgets]
    searches = _searches(task)
    objective = make_objective(config)
    update, losses = bit_meta(config, config.meta_lr, model, objective)
    alphas = _alpha_optimizer(task, searches)

    def step(batch: Batch, averages: Averages) -> str:
        update(losses, batch, Averages())
        model.eval()
        return _alpha_step(searches, alphas, objective, batch, averages)

    phase = Phase(
        "bit-search", config.search_epochs, model, [update.optimizer, alphas], step, cosine,
        _alphas_of(searches), tag=_names(task), ema=update.ema,
    )  # fmt: skip
    _run(task, phase)
    state = copy.deepcopy(model.state_dict())
    return [_found(search, state) for search in searches]


def _joint(task: Task) -> list[Found]:
    """Train alpha alone, on jointly trained weights, which are as before afterwards."""
    config, model = task.config, task.model
    searches = _searches(task, quantize_weights=True)
    objective, alphas = make_objective(config), _alpha_optimizer(task, searches)

    def step(batch: Batch, averages: Averages) -> str:
        follow_batches(model)
        return _alpha_step(searches, alphas, objective, batch, averages)

    phase = Phase(
        "bit-search", config.search_epochs, model, [alphas], step, cosine,
        _alphas_of(searches), tag=_names(task),
    )  # fmt: skip
    with undisturbed(model):
        _run(task, phase)
    return [_found(search, None) for search in searches]


def _searches(task: Task, quantize_weights: bool = False) -> list[BitSearch]:
    """Return the search of each budget, side by side on one model that it does not change."""
    return [
        BitSearch(
            task.config, task.model, task.space, limits, is_fixed=True,
            quantize_weights=quantize_weights,
        )
        for _, limits in task.budgets
    ]  # fmt: skip


def _alpha_step(
    searches: list[BitSearch], alphas: torch.optim.Optimizer, objective: Objective,
    batch: Batch, averages: Averages,
) -> str:  # fmt: skip
    """Do one step of every search's alpha; return the shares of their budgets."""
    x, labels = batch
    loss = objective.on(x, labels)
    notes = [search_step(search, x, labels, loss, averages) for search in searches]
    alphas.step()
    return f"budget used {' '.join(notes)}"


def _alphas_of(searches: list[BitSearch]) -> dict[str, Tensor]:
    return {f"alpha{index}": search.alpha for index, search in enumerate(searches)}


def _names(task: Task) -> str:
    return " ".join(name for name, _ in task.budgets)


def dnas(task: Task) -> list[Found]:
    """Train weights and architecture on Gumbel mixtures, for each budget anew."""
    return [_dnas(task, *budget) for budget in task.budgets]


def _dnas(task: Task, name: str, limits: tuple[Limit, ...]) -> Found:
    config = task.config
    model = build_prepared(task.run, float_weights=True)
    batches = make_batches(config, task.data)
    fit_grids(config, model, batches, CALIBRATION_IMAGES)
    search = BitSearch(config, model, task.space, limits, quantize_weights=True)
    epochs = config.meta_epochs + config.search_epochs
    steps = epochs * len(batches)
    objective, done = make_objective(config), torch.zeros(())

    def mixture(alpha: Tensor) -> Tensor:
        share = float(done) / steps
        temperature = _HOT * (_COLD / _HOT) ** share
        return functional.gumbel_softmax(alpha, temperature)

    weights = mixture_losses(model, search, objective, mixture)
    update, alphas = Update(config, model, config.meta_lr), _alpha_optimizer(task, [search])

    def step(batch: Batch, averages: Averages) -> str:
        update(weights, batch, averages)
        x, labels = batch
        loss = objective.on(x, labels)
        note = search_step(search, x, labels, loss, Averages(), mixture)
        alphas.step()
        done.add_(1)
        return f"budget used {note}"

    phase = Phase(
        "dnas", epochs, model, [update.optimizer, alphas], step, cosine,
        {"alpha": search.alpha, "done": done}, tag=name, ema=update.ema,
    )  # fmt: skip
    _run(task, phase)
    return _found(search, model.state_dict())


def _unfixed(task: Task, name: str, limits: tuple[Limit, ...]) -> Found:
    """Train weights and alpha together on Eq. 3, from the meta-state (ablation)."""
    config, model = task.config, copy.deepcopy(task.model)
    search = BitSearch(config, model, task.space, limits)
    update, alphas = Update(config, model, config.meta_lr), _alpha_optimizer(task, [search])
    objective = make_objective(config)

    def losses(batch: Batch) -> Iterator[Pass]:
        x, labels = batch
        model.train()
        task_loss, mixture = objective.on(x, labels), softmax(search.alpha)
        loss, logits, penalty = search.loss(x, task_loss, len(labels), mixture)
        yield Pass(loss + penalty, logits, labels)

    def step(batch: Batch, averages: Averages) -> str:
        alphas.zero_grad()
        update(losses, batch, averages)
        average_gradients([search.alpha])
        alphas.step()
        return f"budget used {_shares(search)}"

    phase = Phase(
        "unfixed", config.search_epochs, model, [update.optimizer, alphas], step, cosine,
        {"alpha": search.alpha}, tag=name, ema=update.ema,
    )  # fmt: skip
    _run(task, phase)
    return _found(search, model.state_dict())


def _alpha_optimizer(task: Task, searches: list[BitSearch]) -> torch.optim.Optimizer:
    """Return the optimizer of the architecture parameters, as in the released code."""
    alphas = [search.alpha for search in searches]
    rate = task.config.alpha_lr
    return torch.optim.Adam(alphas, lr=rate, betas=(0.5, 0.999), weight_decay=1e-3)


def mixture_losses(
    model: Module, search: BitSearch, objective: Objective, mixture: Mixture = softmax
) -> Losses[Batch]:
    """Return the passes of a step of the weights below a mixture of branches."""

    def losses(batch: Batch) -> Iterator[Pass]:
        x, labels = batch
        model.train()
        mixed = mixture(search.alpha.detach())
        loss, logits, _ = search.loss(x, objective.on(x, labels), len(labels), mixed)
        yield Pass(loss, logits, labels)

    return losses


def search_step(
    search: BitSearch, x: Tensor, labels: Tensor, task_loss: LogitsLoss, averages: Averages,
    mixture: Mixture = softmax,
) -> str:  # fmt: skip
    """Set alpha's gradient of Eq. 3 and nothing else; return the shares of the budget."""
    mixed = mixture(search.alpha)
    loss, logits, penalty = search.loss(x, task_loss, len(labels), mixed)
    (search.alpha.grad,) = torch.autograd.grad(loss + penalty, [search.alpha])
    average_gradients([search.alpha])
    averages.add((loss + penalty).detach(), logits, labels)
    return _shares(search)


def _shares(search: BitSearch) -> str:
    return "/".join(f"{100 * share:.1f}" for share in search.shares()) + " %"


def _run(task: Task, phase: Phase[Batch]) -> None:
    batches = make_batches(task.config, task.data)
    run_phase(phase, task.run, batches, task.progress, task.resume)


def _found(search: BitSearch, state: State | None) -> Found:
    """Return the argmax, repaired where it misses the budget."""
    scores = search.scores()
    picks = fit(scores, search.limits)
    triples = zip(search.space.open, picks, argmax(scores), strict=True)
    repaired = [layer.name for layer, pick, wanted in triples if pick != wanted]
    return Found(picks, state, repaired, search.quantize_weights)
