"""Bits for every layer under a budget: what may be chosen, what it costs, and who chooses."""

from typing import NamedTuple


class Method(NamedTuple):
    """Who chooses.

    Args:
        place: module:function, which takes a `qtool.search.methods.Task`.
        summary: in a line.
        of_meta: it searches from a meta-state, weights that serve every candidate in part.
        of_joint: it searches jointly trained weights, which serve every pair as they are.
    """

    place: str
    summary: str
    of_meta: bool = True
    of_joint: bool = False

    def searches(self, is_joint: bool) -> bool:
        """Return whether it searches jointly trained weights, or else a meta-state."""
        return self.of_joint if is_joint else self.of_meta


METHODS: dict[str, Method] = {
    "metamix": Method(
        "qtool.search.differentiable:metamix", "gradients, on a fixed meta-state",
        of_joint=True,
    ),
    "dnas": Method(
        "qtool.search.differentiable:dnas", "gradients, weights trained along"
    ),
    "hessian": Method(
        "qtool.search.metric:hessian", "Hessian traces and an integer programme"
    ),
    "greedy": Method(
        "qtool.search.metric:greedy", "one layer down at a time, by measured loss"
    ),
    "measured": Method(
        "qtool.search.measured:measured",
        "divergences measured on jointly trained weights, and an integer programme",
        of_meta=False, of_joint=True,
    ),
}  # fmt: skip
# Unless another is asked for: of jointly trained runs, and of those with a meta-state.
JOINT_METHOD, META_METHOD = "measured", "metamix"

# Of pareto.json, what a search under several budgets leaves.
PARETO_FORMAT = 1
# Training images that fronts of jointly trained runs are measured on, unless N are asked for.
HELD_OUT_IMAGES = 2000
