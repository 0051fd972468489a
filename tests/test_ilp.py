"""The integer programme against every selection there is."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtool.search.ilp import Bound, solve

Table = list[list[float]]


def penalty_of(penalties: Table, choices: list[int]) -> float:
    return sum(row[choice] for row, choice in zip(penalties, choices, strict=True))


def by_hand(penalties: Table, bounds: list[Bound]) -> float | None:
    """Least penalty of all selections within the bounds."""
    every = itertools.product(*(range(len(row)) for row in penalties))
    allowed = [list(c) for c in every if all(bound.allows(c) for bound in bounds)]
    return min((penalty_of(penalties, choices) for choices in allowed), default=None)


def check(penalties: Table, bounds: list[Bound]) -> None:
    """The solution is allowed and as good as the best; none where there is none."""
    best, found = by_hand(penalties, bounds), solve(penalties, bounds)
    assert (found is None) == (best is None)
    if found is None or best is None:
        return
    assert all(bound.allows(found) for bound in bounds)
    spread = max(max(row) - min(row) for row in penalties)
    assert penalty_of(penalties, found) <= best + 1e-8 * spread


@st.composite
def problems(draw: st.DrawFn, largest: int) -> tuple[Table, list[Bound]]:
    """Return up to 6 layers of up to 3 choices, and two bounds near a random selection."""
    widths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    cost = st.integers(0, largest)

    def table(values: st.SearchStrategy[float]) -> Table:
        return [draw(st.lists(values, min_size=n, max_size=n)) for n in widths]

    def bound() -> Bound:
        costs, some = table(cost), [draw(st.integers(0, n - 1)) for n in widths]
        total = Bound(costs, 0, 0).total(some)
        shift, width = draw(st.integers(-3, 3)), draw(st.integers(0, 3 * largest))
        low = draw(st.sampled_from([-math.inf, total + shift - width]))
        return Bound(costs, low, draw(st.sampled_from([math.inf, total + shift])))

    return table(st.floats(0, 10)), [bound(), bound()]


@settings(max_examples=60, deadline=None)
@given(problems(largest=12))
def test_the_optimum_is_that_of_all_selections(problem: tuple[Table, list[Bound]]) -> None:
    check(*problem)


@settings(max_examples=30, deadline=None)
@given(problems(largest=5_000_000_000))
def test_costs_of_billions_are_compared_to_the_last_unit(
    problem: tuple[Table, list[Bound]],
) -> None:
    check(*problem)


def test_one_unit_above_the_bound_is_too_much() -> None:
    # Seen by HiGHS, 1 in 10^10 is within its tolerance.
    costs = [[10**10, 0], [10**10 + 1, 0], [10**10, 0]]
    penalties = [[0.0, 5.0], [0.0, 5.1], [0.0, 5.0]]
    assert solve(penalties, [Bound(costs, 0, 2 * 10**10)]) == [0, 1, 0]
    assert solve(penalties, [Bound(costs, 2 * 10**10 + 1, 2 * 10**10 + 1)]) in (
        [0, 0, 1], [1, 0, 0],
    )  # fmt: skip


def test_a_tiny_penalty_is_not_lost_beside_a_huge_one() -> None:
    penalties = [[1e9, 0.0], [1e-9, 0.0]]
    assert solve(penalties, [Bound([[0, 1], [0, 1]], 0, 2)]) == [1, 1]


@pytest.mark.parametrize(
    ("penalties", "costs"),
    [([[0.0, math.inf]], [[0, 1]]), ([[0.0, 1.0]], [[0, math.nan]]), ([[0.0, 1.0]], [[0]])],
)
def test_tables_that_mean_nothing_are_refused(penalties: Table, costs: Table) -> None:
    with pytest.raises(ValueError, match=r"not finite|different shapes"):
        solve(penalties, [Bound(costs, 0, 1)])


def test_a_network_of_mobilenets_size_is_solved_below_two_bounds() -> None:
    layers, bits = 52, (8, 4, 3)
    macs = [1_000_003 * (1 + (7 * i) % 13) for i in range(layers)]
    penalties = [[0.0, 1.0 / (1 + i), 3.0 / (1 + i)] for i in range(layers)]
    bops = Bound([[4 * m * b for b in bits] for m in macs], 0, 4 * 4 * sum(macs))
    mean = Bound([list(bits)] * layers, 0, 5 * layers)
    found = solve(penalties, [bops, mean])
    assert found is not None and bops.allows(found) and mean.allows(found)
    assert bops.total(found) > 0.99 * bops.high or mean.total(found) > 0.99 * mean.high
    assert solve(penalties, [bops, mean]) == found
