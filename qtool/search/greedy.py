"""Search by measured loss: what each candidate of each layer costs alone, then steps down.

The loss of the network with one layer at a candidate and every other one at its widest; from
the widest candidates everywhere, the step that loses least per cost saved comes first. No
optimum (`qtool.search.ilp` finds that of a sum), but what a person would do by hand.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from qtool.core.selection import LayerBits, Selection
from qtool.data.batches import Batch
from qtool.data.clips import clip_logits
from qtool.nn.control import initialise_weight_steps, select
from qtool.search.ilp import Matrix, total
from qtool.search.space import SearchLayer, Space
from qtool.search.undisturbed import undisturbed
from qtool.training.evaluation import device_of


def loss_increases(
    model: nn.Module, space: Space, batches: Iterable[Batch]
) -> list[list[float]]:
    """Return by how much the loss rises, for open layers x choices; leaves the model as it is.

    The loss is label cross-entropy in evaluation mode, mean over all images; one increase may
    be negative. Weights stay float where every layer has one weight candidate, else they are
    quantized with steps fitted to the present weights. Cost: one forward pass over all images
    for each choice but the widest, and one more.

    Args:
        model: prepared network at the meta-state.
        space: its candidates.
        batches: (x, labels); drawn once and kept in memory.
    """
    kept = list(batches)
    weights = any(len({c.weight for c in layer.choices}) > 1 for layer in space.open)
    widest = {layer.name: widest_of(layer) for layer in space.open}
    table = []
    with undisturbed(model):
        if weights:
            initialise_weight_steps(model)
        lowest = _loss(model, widest, kept, weights)
        for layer in space.open:
            table.append([
                0.0 if choice == widest[layer.name]
                else _loss(model, {**widest, layer.name: choice}, kept, weights) - lowest
                for choice in layer.choices
            ])  # fmt: skip
    return table


def widest_of(layer: SearchLayer) -> LayerBits:
    """Return the choice of most BOPs."""
    return max(layer.choices, key=lambda bits: bits.weight * bits.activation)


@torch.no_grad()
def _loss(
    model: nn.Module, layers: dict[str, LayerBits], batches: Sequence[Batch], weights: bool
) -> float:
    """Return the mean loss at the bits of `layers`."""
    select(model, Selection(layers), weights)
    device, total, images = device_of(model), 0.0, 0
    for x, labels in batches:
        logits = clip_logits(model(x.to(device)), len(labels))
        loss = functional.cross_entropy(logits, labels.to(device), reduction="sum")
        total, images = total + float(loss), images + len(labels)
    if not images:
        raise ValueError("no images to measure the loss with")
    return total / images


@dataclass(frozen=True)
class _Move:
    """Another choice of one layer; `slope`: change of penalty per cost."""

    layer: int
    choice: int
    slope: float
    cost: float
    penalty: float


def greedy_choices(penalties: Matrix, costs: Matrix, limit: float) -> list[int]:
    """Return the index of every layer's choice, with sum of costs <= `limit` if reachable.

    From the costliest candidates, take the step of one layer to a cheaper candidate with the
    least rise of penalty per cost saved, until the limit is met. Then take upgrades that fit:
    the largest fall of penalty per cost first, as long as the penalty does not rise. A limit
    below every selection gets the cheapest one.

    Args:
        penalties: layers x choices, of any sign.
        costs: likewise.
        limit: largest sum of costs.
    """
    chosen = [_costliest(*rows) for rows in zip(penalties, costs, strict=True)]
    while total(costs, chosen) > limit:
        steps = [move for move in _moves(penalties, costs, chosen) if move.cost < 0]
        if not steps:
            return chosen
        step = max(steps, key=lambda move: move.slope)
        chosen[step.layer] = step.choice
    while True:
        upgrades = [
            move for move in _moves(penalties, costs, chosen)
            if move.cost > 0 and move.penalty <= 0
            and total(costs, _after(chosen, move)) <= limit
        ]  # fmt: skip
        if not upgrades:
            return chosen
        chosen = _after(chosen, min(upgrades, key=lambda move: move.slope))


def _costliest(penalties: Sequence[float], costs: Sequence[float]) -> int:
    """Return the choice of highest cost, of lowest penalty among equals."""
    return max(range(len(costs)), key=lambda choice: (costs[choice], -penalties[choice]))


def _after(chosen: Sequence[int], move: _Move) -> list[int]:
    return [*chosen[: move.layer], move.choice, *chosen[move.layer + 1 :]]


def _moves(penalties: Matrix, costs: Matrix, chosen: Sequence[int]) -> Iterator[_Move]:
    """Yield every change of one layer to a choice of another cost."""
    for layer, now in enumerate(chosen):
        for choice, cost in enumerate(costs[layer]):
            more = cost - costs[layer][now]
            rise = penalties[layer][choice] - penalties[layer][now]
            if more != 0:
                yield _Move(layer, choice, rise / more, more, rise)
