"""One choice per layer of least penalty within bounds: HAWQ's integer programme, for any cost.

Minimise sum_l penalty[l][c_l] subject to low <= sum_l cost[l][c_l] <= high for every bound (a
multiple-choice knapsack of several dimensions; HAWQ-V3, Yao et al. 2021, arXiv 2011.10680,
section 3.4, with the penalty of HAWQ-V2). HiGHS solves it, in floating point and to within
1e-6 of every row; what it returns is therefore checked exactly here, and a choice that
violates a bound is cut off before it is asked again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = Sequence[Sequence[float]]
Row = NDArray[np.float64]
# Largest coefficient that HiGHS sees: its absolute tolerances are 1e-9 of that.
_LARGEST = 1e3
# Widens bounds by more than the rounding of scaled costs, so that no exact choice is lost.
_ROUNDING = 1e-9
# Choices cut off one by one; after that, bounds are narrowed by what was violated.
_CUTS = 20
_ATTEMPTS = 60


def total(table: Matrix, choices: Sequence[int]) -> float:
    """Return the sum over layers of what each one's choice has in `table`."""
    return sum(row[choice] for row, choice in zip(table, choices, strict=True))


@dataclass(frozen=True)
class Bound:
    """What a selection may cost in one unit.

    Args:
        costs: of every layer's choices, shaped as the penalties.
        low: least sum; -inf: any.
        high: largest sum; inf: any.
    """

    costs: Matrix
    low: float
    high: float

    def total(self, choices: Sequence[int]) -> float:
        """Return the cost of `choices`, summed in layer order (exact where costs are int)."""
        return total(self.costs, choices)

    def allows(self, choices: Sequence[int]) -> bool:
        """Return whether `choices` are within the bound, exactly."""
        return self.low <= self.total(choices) <= self.high


def solve(penalties: Matrix, bounds: Sequence[Bound]) -> list[int] | None:
    """Return the index of every layer's choice, None where no selection meets the bounds.

    The result meets every bound exactly; its penalty is the least up to 1e-9 of the largest
    difference within a layer. Between two bounds closer than 1e-6 of the largest cost it may
    find nothing where there is something. The same input gives the same result.

    Args:
        penalties: layers x choices (rows may differ in length), finite.
        bounds: all of them hold.

    Raises:
        ValueError: a penalty or cost that is not finite, or costs of another shape.
    """
    _check(penalties, bounds)
    margins = [0.0] * len(bounds)
    cuts: list[list[int]] = []
    for attempt in range(_ATTEMPTS):
        found = _ask(penalties, bounds, margins, cuts)
        if found is None:
            return None
        if all(bound.allows(found) for bound in bounds):
            return _improved(penalties, bounds, found)
        cuts.append(found)
        if attempt >= _CUTS:
            for index, bound in enumerate(bounds):
                total = bound.total(found)
                margins[index] += max(total - bound.high, bound.low - total, 0.0)
    return None


def _check(penalties: Matrix, bounds: Sequence[Bound]) -> None:
    lengths = [len(row) for row in penalties]
    for table in (penalties, *(bound.costs for bound in bounds)):
        if [len(row) for row in table] != lengths:
            raise ValueError("penalties and costs are of different shapes")
        if not all(math.isfinite(value) for row in table for value in row):
            raise ValueError("a penalty or a cost is not finite")


def _scaled(table: Matrix) -> tuple[Row, float, float]:
    """Return (excess over each row's least, flat and scaled; sum of the least; the scale)."""
    least = [min(row) for row in table]
    flat = np.array([v - low for row, low in zip(table, least, strict=True) for v in row])
    scale = _LARGEST / max(float(flat.max(initial=0.0)), 1e-300)
    return flat * scale, sum(least), scale


def _ask(
    penalties: Matrix,
    bounds: Sequence[Bound],
    margins: Sequence[float],
    cuts: Sequence[Sequence[int]],
) -> list[int] | None:
    """Return HiGHS's optimum of the bounds narrowed by `margins` and without `cuts`."""
    from scipy.optimize import LinearConstraint, milp

    lengths = [len(row) for row in penalties]
    if not lengths:
        return []
    ends = np.cumsum(lengths)
    layer_of = np.repeat(np.arange(len(lengths)), lengths)
    one_each = (layer_of == np.arange(len(lengths))[:, None]).astype(float)
    rows = [LinearConstraint(one_each, 1, 1)]
    for bound, margin in zip(bounds, margins, strict=True):
        row, base, scale = _scaled(bound.costs)
        low, high = (bound.low + margin - base) * scale, (bound.high - margin - base) * scale
        slack = _ROUNDING * (_LARGEST + scale * abs(base))
        if low - slack > high + slack:
            return None
        rows.append(LinearConstraint(row, low - slack, high + slack))
    for cut in cuts:
        row = np.zeros(len(layer_of))
        row[ends - lengths + np.array(cut)] = 1.0
        rows.append(LinearConstraint(row, -np.inf, len(lengths) - 1))
    objective, _, _ = _scaled(penalties)
    answer = milp(
        objective, integrality=1, bounds=(0, 1), constraints=rows,
        options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    if answer.status == 2:
        return None
    if answer.x is None or answer.status != 0:
        raise RuntimeError(f"HiGHS found no optimum: {answer.message}")
    return [int(part.argmax()) for part in np.split(answer.x, ends[:-1])]


def _improved(penalties: Matrix, bounds: Sequence[Bound], choices: Sequence[int]) -> list[int]:
    """Take what HiGHS's tolerance left: a better choice of one layer within the bounds."""
    result = list(choices)
    better = True
    while better:
        better = False
        for layer, row in enumerate(penalties):
            for choice in sorted(range(len(row)), key=row.__getitem__):
                changed = [*result[:layer], choice, *result[layer + 1 :]]
                if row[choice] >= row[result[layer]]:
                    break
                if all(bound.allows(changed) for bound in bounds):
                    result, better = changed, True
                    break
    return result
