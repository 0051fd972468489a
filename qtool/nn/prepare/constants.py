"""What a forward() computes without the image: of its parameters alone, or everything.

On the device every constant is stored. A weight that forward() computes, ``conv2d(x, w * g)``,
would be computed there, for each image anew; a parametrization of the module is computed once
(`qtool.models.owned`). Weights that are only moved, ``w.transpose(0, 1)``, are left to others.
"""

from torch import fx

from qtool.nn.capture.operators import Kind, called
from qtool.nn.capture.place import place_of
from qtool.nn.prepare.graph_view import GraphView

# Of parameters, they would be modules.
LAYER_FUNCTIONS = ("conv2d", "linear", "batch_norm")
_SHOWN = 4


def computed_constants(view: GraphView) -> dict[fx.Node, str]:
    """Return why operators cannot be kept that read what forward() computes of parameters."""
    found, values = {}, dependent(view, by_size=False)
    for node in alive(view):
        if node not in values:
            continue
        before = _ancestors(view, [n for n in node.all_input_nodes if n not in values])
        made = [n for n in before if view.makes_values(n)]
        names = [str(n.target) for n in _ancestors(view, made) if n.op == "get_attr"]
        if names:
            found[node] = _sentence(view, node, made, names)
    return found


def ignores_image(view: GraphView) -> bool:
    """True where no value of the result depends on a value of the image."""
    values = dependent(view, by_size=False)
    return not any(node.op == "output" and node in values for node in view.nodes)


def alive(view: GraphView) -> list[fx.Node]:
    """Return the nodes that the result depends on, in order."""
    found: set[fx.Node] = set()
    for node in reversed(view.nodes):
        if node.op == "output" or node in found:
            found.add(node)
            found.update(node.all_input_nodes)
    return [node for node in view.nodes if node in found]


def dependent(view: GraphView, by_size: bool) -> set[fx.Node]:
    """Return what depends on the image: on its values, or if `by_size` on its size too."""
    found: set[fx.Node] = set()
    for node in view.nodes:
        if node.op == "placeholder":
            found.add(node)
        elif found.intersection(node.all_input_nodes):
            if by_size or view.kind(node) is not Kind.SHAPE:
                found.add(node)
    return found


def _ancestors(view: GraphView, nodes: list[fx.Node]) -> list[fx.Node]:
    """Return `nodes` and all whose values they depend on, in the graph's order."""
    found, waiting = set[fx.Node](), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found and view.kind(node) is not Kind.SHAPE:
            found.add(node)
            waiting += node.all_input_nodes
    return sorted(found)


def _sentence(view: GraphView, node: fx.Node, made: list[fx.Node], names: list[str]) -> str:
    what = "weights" if called(node, None) in LAYER_FUNCTIONS else "constant"
    makers = [called(maker, view.module(maker)) for maker in made]
    return (
        f"{place_of(node)}: forward() computes its {what} ({_few(makers)}) from "
        f"{_few(names)}; let a parametrization (torch.nn.utils.parametrize) compute what is "
        "stored: it becomes a plain tensor"
    )


def _few(names: list[str]) -> str:
    different = [*dict.fromkeys(names)]
    return ", ".join(different[:_SHOWN]) + (", ..." if len(different) > _SHOWN else "")
