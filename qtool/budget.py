"""Bits that fit a budget: the argmax of a search where it fits, its nearest repair where not.

Maximise sum_l log p_l(b_l) subject to BOPs(b) <= budget (a multiple-choice knapsack), then
spend what is left on the upgrades that the search likes best. The result is never above the
budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qtool.cost import format_count
from qtool.errors import UserError

# An argmax that uses less than this share of the budget is repaired too.
LEAST_USE = 0.97
_BUCKETS = 4096


@dataclass(frozen=True)
class Choice:
    """One candidate of one layer: its bits, its BOPs, and the search's log-probability."""

    bits: int
    cost: int
    score: float


def check_reachable(budget: float, smallest: int, largest: int) -> None:
    """Refuse a budget that no selection meets, or that every selection meets."""
    span = (
        f"reachable: {format_count(smallest)} ({smallest:,}) "
        f"to {format_count(largest)} ({largest:,})"
    )
    if budget < smallest:
        raise UserError(f"budget {format_count(budget)}BOPs is below every selection; {span}")
    if budget > largest:
        raise UserError(
            f"budget {format_count(budget)}BOPs is above every selection, so there is "
            f"nothing to search; {span}"
        )


def fit(layers: Sequence[Sequence[Choice]], budget: float) -> list[Choice]:
    """Return one choice per layer with total cost <= `budget` (which must be reachable)."""
    favourite = [max(row, key=lambda c: c.score) for row in layers]
    used = sum(choice.cost for choice in favourite)
    if LEAST_USE * budget <= used <= budget:
        return favourite
    chosen = favourite if used <= budget else _knapsack(layers, budget)
    return _spend(layers, chosen, budget)


def _knapsack(layers: Sequence[Sequence[Choice]], budget: float) -> list[Choice]:
    """Dynamic programme over costs above the cheapest selection, rounded up to buckets."""
    cheapest = [min(row, key=lambda c: c.cost) for row in layers]
    spare = budget - sum(choice.cost for choice in cheapest)
    unit = max(spare / _BUCKETS, 1e-9)
    best = np.zeros(_BUCKETS + 1)
    picks: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = []
    weights = [
        [int(np.ceil((choice.cost - least.cost) / unit)) for choice in row]
        for row, least in zip(layers, cheapest, strict=True)
    ]
    for row, weight in zip(layers, weights, strict=True):
        totals = np.full((len(row), _BUCKETS + 1), -np.inf)
        for index, (choice, w) in enumerate(zip(row, weight, strict=True)):
            if w <= _BUCKETS:
                totals[index, w:] = best[: _BUCKETS + 1 - w] + choice.score
        picks.append(totals.argmax(0))
        best = totals.max(0)
    left, chosen = _BUCKETS, []
    for row, weight, pick in zip(layers[::-1], weights[::-1], picks[::-1], strict=True):
        index = int(pick[left])
        chosen.append(row[index])
        left -= weight[index]
    return chosen[::-1]


def _spend(
    layers: Sequence[Sequence[Choice]], chosen: Sequence[Choice], budget: float
) -> list[Choice]:
    """Upgrade layers while an upgrade fits: the least loss of score per BOP first."""
    result = list(chosen)
    while True:
        left = budget - sum(choice.cost for choice in result)
        upgrades = [
            ((choice.score - result[i].score) / (choice.cost - result[i].cost), i, choice)
            for i, row in enumerate(layers)
            for choice in row
            if 0 < choice.cost - result[i].cost <= left
        ]
        if not upgrades:
            return result
        _, index, choice = max(upgrades, key=lambda u: (u[0], -u[1]))
        result[index] = choice
