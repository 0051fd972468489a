"""Bits for every layer under a budget: what may be chosen, what it costs, and who chooses."""

# Name: (module:function, summary). A function takes a `qtool.search.methods.Task`.
METHODS: dict[str, tuple[str, str]] = {
    "metamix": ("qtool.search.differentiable:metamix", "gradients, on a fixed meta-state"),
    "dnas": ("qtool.search.differentiable:dnas", "gradients, weights trained along"),
    "hessian": ("qtool.search.metric:hessian", "Hessian traces and an integer programme"),
    "greedy": ("qtool.search.metric:greedy", "one layer down at a time, by measured loss"),
}

# Of pareto.json, what a search under several budgets leaves.
PARETO_FORMAT = 1
