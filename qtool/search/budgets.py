"""What a budget bounds, layer by layer."""

from collections.abc import Callable

from qtool.progress import Progress
from qtool.run import Run
from qtool.search.limits import Limit, layer_bops, limit_of
from qtool.search.request import Budget, Request
from qtool.search.space import Space


def limits_of(
    budget: Budget, run: Run, space: Space, request: Request, progress: Progress
) -> tuple[Limit, ...]:
    """Return the bounds of `budget` on `space`; latency is measured, or read from a table."""
    makers: dict[str, Callable[[float], Limit]] = {
        "bops": lambda bound: limit_of("bops", bound, space, layer_bops),
        "bytes": lambda bound: _size(bound, space),
        "seconds": lambda bound: _latency(bound, run, space, request, progress),
    }
    return tuple(makers[kind](bound) for kind, bound in budget.bounds.items())


def _size(bound: float, space: Space) -> Limit:
    from qtool.search.size import layer_bytes

    return limit_of("bytes", bound, space, layer_bytes)


def _latency(
    bound: float, run: Run, space: Space, request: Request, progress: Progress
) -> Limit:
    from qtool.search.latency import latency_table

    table = latency_table(run, space, request.runtime, request.latency_table, progress.note)
    costs = tuple(tuple(row) for row in table.costs(space))
    return Limit("seconds", bound, table.fixed, costs)
