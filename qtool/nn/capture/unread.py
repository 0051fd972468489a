"""A captured network without the layers whose results nobody reads.

An auxiliary head, say, that matters in training alone. torch's exporter leaves such layers
out, so that bits and grids for them would be about nothing. A network without any stays as it
is. What works in place on a tensor that is read is kept, whoever reads its own result.
"""

from torch import fx, nn

from qtool.nn.capture.operators import Kind, kind_of


def drop_unread(gm: fx.GraphModule) -> None:
    """Remove from `gm` what its result does not depend on, if layers are among that."""
    read = _read(gm)
    unread = [node for node in gm.graph.nodes if node not in read]
    if not any(_kind(gm, node) is Kind.LAYER for node in unread):
        return
    for node in reversed(unread):
        if node.op != "placeholder":
            gm.graph.erase_node(node)
    gm.recompile()


def _read(gm: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that the result depends on."""
    found: set[fx.Node] = set()
    waiting = [node for node in gm.graph.nodes if node.op == "output"]
    writers = [node for node in gm.graph.nodes if _works_in_place(gm, node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
        if not waiting:
            waiting = [w for w in writers if w not in found and _written(gm, w) in found]
    return found


def _works_in_place(gm: fx.GraphModule, node: fx.Node) -> bool:
    if not node.all_input_nodes or node.op == "output":
        return False
    if node.op == "call_module":
        return bool(getattr(gm.get_submodule(str(node.target)), "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    return (
        name.endswith("_") or bool(node.kwargs.get("inplace")) or "out" in node.kwargs
        or name in ("setitem", "iadd", "imul", "isub", "itruediv")
    )  # fmt: skip


def _written(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return what made the tensor that `node` works on, through views and other such nodes."""
    out = node.kwargs.get("out")
    source = out if isinstance(out, fx.Node) else node.all_input_nodes[0]
    while source.all_input_nodes:
        may_be_view = _kind(gm, source) in (Kind.MOVE, Kind.OTHER)
        if not (may_be_view or _works_in_place(gm, source)):
            break
        source = source.all_input_nodes[0]
    return source


def _kind(gm: fx.GraphModule, node: fx.Node) -> Kind:
    module: nn.Module | None = None
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
    return kind_of(node, module)
