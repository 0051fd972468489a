"""Bits that fit a budget: the argmax of a search where it fits, its nearest repair where not.

The repair maximises the sum of scores subject to every bound, and to the use of at least
`LEAST_USE` of the tightest one: a multiple-choice knapsack, solved exactly. What it leaves of
the budget goes to the upgrades that cost least score.
"""

from collections.abc import Sequence

from qtool.core.errors import UserError
from qtool.search.ilp import Bound, solve, total
from qtool.search.limits import LEAST_USE, Limit


def argmax(scores: Sequence[Sequence[float]]) -> list[int]:
    """Return the best choice of every layer, whatever it costs; the first of equal ones."""
    return [max(range(len(row)), key=row.__getitem__) for row in scores]


def is_fitting(picks: Sequence[int], limits: Sequence[Limit]) -> bool:
    """True if `picks` exceed no bound and use enough of the tightest one."""
    shares = [limit.used(picks) / limit.bound for limit in limits]
    return LEAST_USE <= max(shares) <= 1


def fit(scores: Sequence[Sequence[float]], limits: Sequence[Limit]) -> list[int]:
    """Return one choice per open layer: the best scores within `limits`.

    Args:
        scores: of every choice of every open layer, more is better.
        limits: bounds.

    Raises:
        UserError: no selection meets all bounds.
    """
    favourite = argmax(scores)
    if is_fitting(favourite, limits):
        return favourite
    penalties = [[max(row) - score for score in row] for row in scores]
    found = [
        picks
        for tight in limits
        if (picks := solve(penalties, [_bound(one, one is tight) for one in limits]))
    ]
    if not found:
        return _nearest(limits)
    return _spend(penalties, min(found, key=lambda p: total(penalties, p)), limits)


def least(penalties: Sequence[Sequence[float]], limits: Sequence[Limit]) -> list[int]:
    """Return one choice per open layer: the least sum of `penalties` within `limits`.

    Raises:
        UserError: no selection meets all bounds.
    """
    return fit([[-penalty for penalty in row] for row in penalties], limits)


def _spend(
    penalties: Sequence[Sequence[float]], picks: Sequence[int], limits: Sequence[Limit]
) -> list[int]:
    """Take dearer choices while one fits: the least penalty per share of the bounds first."""
    result = list(picks)
    while True:
        upgrades = []
        for layer, row in enumerate(penalties):
            for choice in range(len(row)):
                other = [*result[:layer], choice, *result[layer + 1 :]]
                more = [(o.used(other) - o.used(result)) / o.bound for o in limits]
                fits = all(o.used(other) <= o.bound for o in limits)
                if fits and min(more) >= 0 and sum(more) > 0:
                    upgrades.append(((row[choice] - row[result[layer]]) / sum(more), other))
        if not upgrades:
            return result
        result = min(upgrades, key=lambda upgrade: upgrade[0])[1]


def _nearest(limits: Sequence[Limit]) -> list[int]:
    """Return the dearest selection within `limits`: none comes nearer to the first one."""
    worst = [max(row) for row in limits[0].costs]
    spare = [
        [(most - cost) / limits[0].bound for cost in row]
        for most, row in zip(worst, limits[0].costs, strict=True)
    ]
    picks = solve(spare, [_bound(limit, False) for limit in limits])
    if picks is None:
        shown = " and ".join(limit.text(limit.bound) for limit in limits)
        raise UserError(f"budget {shown}: no selection meets all of them; relax one")
    return picks


def _bound(limit: Limit, is_tight: bool) -> Bound:
    low = LEAST_USE * limit.bound - limit.fixed if is_tight else float("-inf")
    return Bound(limit.costs, low, limit.bound - limit.fixed)
