"""Budgets: upper bounds of what a network costs, as sums over its layers.

bops     bit operations per image: MACs * weight bits * activation bits (`qtool.core.cost`)
bytes    weights and per-channel constants as the deployed file stores them
seconds  latency, from measurements of single layers on a runtime
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qtool.core.cost import LayerCost, format_count
from qtool.core.errors import UserError
from qtool.core.selection import LayerBits
from qtool.search.ilp import total
from qtool.search.space import SearchLayer, Space

# A result that uses less than this share of its tightest bound is repaired.
LEAST_USE = 0.97


@dataclass(frozen=True)
class Kind:
    """What is bounded.

    Args:
        title: for tables and errors.
        unit: of the search's penalty: lambda is per `unit` (paper, Eq. 4: GBOPs).
        text: shows a value.
    """

    title: str
    unit: float
    text: Callable[[float], str]


KINDS: dict[str, Kind] = {
    "bops": Kind("BOPs", 1e9, lambda value: f"{format_count(value)}BOPs"),
    "bytes": Kind("size", 1e6, lambda value: f"{format_count(value)}B"),
    "seconds": Kind("latency", 1e-3, lambda value: f"{1e3 * value:.3f} ms"),
}


@dataclass(frozen=True)
class Limit:
    """One bound on a search: fixed + sum over open layers of costs[layer][choice] <= bound.

    Args:
        kind: a key of `KINDS`.
        bound: the largest allowed sum.
        fixed: what the layers cost where nothing is chosen.
        costs: of every choice of every open layer.
    """

    kind: str
    bound: float
    fixed: float
    costs: tuple[tuple[float, ...], ...]

    def used(self, picks: Sequence[int]) -> float:
        """Return what the choices `picks` cost together."""
        return self.fixed + total(self.costs, picks)

    @property
    def span(self) -> tuple[float, float]:
        """What the cheapest and the dearest selection cost."""
        return (
            self.fixed + sum(min(row) for row in self.costs),
            self.fixed + sum(max(row) for row in self.costs),
        )

    def text(self, value: float) -> str:
        """Return `value` with its unit."""
        return KINDS[self.kind].text(value)


def limit_of(
    kind: str, bound: float, space: Space, cost: Callable[[SearchLayer, LayerBits], float]
) -> Limit:
    """Return the bound on the sum of `cost` over all layers of `space`."""
    costs = tuple(tuple(cost(layer, bits) for bits in layer.choices) for layer in space.open)
    closed = [layer for layer in space.layers if not layer.is_open]
    return Limit(kind, bound, sum(cost(layer, layer.choices[0]) for layer in closed), costs)


def layer_bops(layer: SearchLayer, bits: LayerBits) -> int:
    """Return the BOPs of one layer per image (paper, Eq. 6)."""
    return LayerCost(layer.name, layer.macs, bits).bops


def check_reachable(limits: Sequence[Limit]) -> None:
    """Refuse a bound that no selection meets, or bounds that every selection meets."""
    for limit in limits:
        if limit.bound < limit.span[0]:
            raise UserError(
                f"budget {limit.text(limit.bound)} is below every selection; {_span(limit)}"
            )
    if all(limit.bound > limit.span[1] for limit in limits):
        limit = limits[0]
        raise UserError(
            f"budget {limit.text(limit.bound)} is above every selection, so there is nothing "
            f"to search; {_span(limit)}"
        )


def _span(limit: Limit) -> str:
    low, high = limit.span
    exact = limit.kind == "bops"
    shown = [f"{limit.text(v)} ({v:,.0f})" if exact else limit.text(v) for v in (low, high)]
    return f"reachable: {shown[0]} to {shown[1]}"
