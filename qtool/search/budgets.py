"""What a budget bounds, layer by layer, and the budgets of a front."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.runs.run import Run
from qtool.search.latency import LatencyTable, load_table, measure_latency
from qtool.search.limits import Limit, layer_bops, limit_of
from qtool.search.request import Budget, Request
from qtool.search.size import layer_bytes
from qtool.search.space import Space


def with_front(request: Request, space: Space) -> Request:
    """Return `request` with the budgets of its front, if it asks for one.

    They lie between what the cheapest and the dearest uniform bits cost in BOPs, each the same
    multiple of the one before, in four digits.

    Raises:
        UserError: fewer than two uniform bits, or more budgets than fit between.
    """
    if not request.front:
        return request
    limit = limit_of("bops", 0.0, space, layer_bops)
    costs = sorted({limit.used(picks) for picks in space.uniform.values()})
    if len(costs) < 2:
        raise UserError("--front: no two candidates are there for every layer: give --bops")
    ratio, count = costs[-1] / costs[0], request.front
    bounds = [
        float(f"{costs[0] * ratio ** (i / (count + 1)):.4g}") for i in range(1, count + 1)
    ]
    between = costs[0] < bounds[0] and bounds[-1] < costs[-1]
    if len(set(bounds)) < count or not between:
        raise UserError(
            f"--front {count}: too many between {limit.text(costs[0])} and "
            f"{limit.text(costs[-1])}"
        )
    return replace(request, budgets=tuple(Budget(bops=bound) for bound in bounds))


def limits_of(
    request: Request, run: Run, space: Space, progress: Progress
) -> list[tuple[Limit, ...]]:
    """Return the bounds of every budget on `space`; latency is measured or read, once."""

    @cache
    def table() -> LatencyTable:
        return _table(request, run, space, progress)

    makers: dict[str, Callable[[float], Limit]] = {
        "bops": lambda bound: limit_of("bops", bound, space, layer_bops),
        "bytes": lambda bound: limit_of("bytes", bound, space, layer_bytes),
        "seconds": lambda bound: _latency(bound, table(), space),
    }
    return [
        tuple(makers[kind](bound) for kind, bound in budget.bounds.items())
        for budget in request.budgets
    ]


def _table(request: Request, run: Run, space: Space, progress: Progress) -> LatencyTable:
    path = request.latency_table
    if path is not None and path.exists():
        table = load_table(path, space, request.runtime)
    else:
        table = measure_latency(run, space, request.runtime, progress.note)
        if path is not None:
            table.save(path)
    progress.note(table.describe())
    return table


def _latency(bound: float, table: LatencyTable, space: Space) -> Limit:
    costs: Sequence[Sequence[float]] = table.costs(space)
    return Limit("seconds", bound, table.fixed, tuple(map(tuple, costs)))
