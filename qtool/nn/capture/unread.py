"""A captured network without the layers whose results nobody reads.

An auxiliary head, say, that matters in training alone. torch's exporter leaves such layers
out, so that bits and grids for them would be about nothing. A network without any stays as it
is. Nothing works in place here (`qtool.nn.capture.in_place`): who is not read does nothing.
"""

from torch import fx

from qtool.nn.capture.operators import Kind, kind_of


def drop_unread(gm: fx.GraphModule) -> None:
    """Remove from `gm` what its result does not depend on, if layers are among that."""
    read: set[fx.Node] = set()
    for node in reversed(gm.graph.nodes):
        if node.op == "output" or node in read:
            read.update((node, *node.all_input_nodes))
    unread = [node for node in gm.graph.nodes if node not in read]
    if not any(_is_layer(gm, node) for node in unread):
        return
    for node in reversed(unread):
        if node.op != "placeholder":
            gm.graph.erase_node(node)
    gm.recompile()


def _is_layer(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return kind_of(node, gm.get_submodule(str(node.target))) is Kind.LAYER
