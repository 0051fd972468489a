"""What a budget bounds, layer by layer."""

from collections.abc import Callable, Sequence
from functools import cache

from qtool.core.progress import Progress
from qtool.runs.run import Run
from qtool.search.latency import LatencyTable, load_table, measure_latency
from qtool.search.limits import Limit, layer_bops, limit_of
from qtool.search.request import Request
from qtool.search.size import layer_bytes
from qtool.search.space import Space


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
