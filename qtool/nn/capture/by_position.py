"""``conv(input=x)`` -> ``conv(x)``: modules that qtool puts in take theirs by position."""

import inspect

from torch import fx


def by_position(gm: fx.GraphModule) -> None:
    """Give the calls of `gm` their arguments by position, as far as they can be, in place."""
    for node in gm.graph.nodes:
        if not node.kwargs:
            continue
        if node.op == "call_module":
            signature = inspect.signature(gm.get_submodule(str(node.target)).forward)
            given = signature.bind(*node.args, **node.kwargs)
            node.args, node.kwargs = given.args, given.kwargs
        elif node.op == "call_function" and not node.args and "input" in node.kwargs:
            rest = {name: value for name, value in node.kwargs.items() if name != "input"}
            node.args, node.kwargs = (node.kwargs["input"],), rest
