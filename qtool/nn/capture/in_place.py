"""In-place operators of a traced network -> operators that make a tensor of their own.

``y.clamp_(0, 6)`` -> ``clamped = y.clamp(0, 6)``, and whatever reads y, or what is y, later
reads `clamped`; a view of y that is read later is made again, of `clamped`. Quantizers copy
what they round, so that a write would be lost behind one.

Refused, by name: a tensor that is read after a part or a view of it was written to; what
shares memory perhaps (``flatten`` copies where it must) and is read after a write; writes to
parameters and buffers.
"""

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from qtool.core.errors import UnsupportedError
from qtool.models.owned import without_children
from qtool.nn.capture.aliases import (
    PURE,
    RESHAPING,
    Relation,
    are_apart,
    part_of,
    shared,
    without_write,
    writes,
)
from qtool.nn.capture.arguments import ARGUMENTS
from qtool.nn.capture.operators import called
from qtool.nn.capture.place import place_of

# Key of a graph module's meta: the places of the in-place operators it had.
IN_PLACE = "qtool_in_place"


def out_of_place(gm: fx.GraphModule, state: Mapping[fx.Node, str], model: str) -> list[str]:
    """Rewrite `gm`; return where it had in-place operators.

    Args:
        gm: just traced: its nodes are in the order in which the network computes them.
        state: nodes that read parameters and buffers, and their names.
        model: its class, for errors.

    Raises:
        UnsupportedError: names a write that only an aliased tensor could show, and its reader.
    """
    rewriter = _Rewriter(gm, state, model)
    for node in list(gm.graph.nodes):
        rewriter.visit(node)
    rewriter.replace_modules()
    gm.recompile()
    return rewriter.places


class _Rewriter:
    """Knows, at each node, what the tensors before it are by now.

    Attributes:
        parents: whose memory a tensor shares, and how.
        calls: arguments as they were traced.
        now: the node that has a tensor's value, if it is not the tensor's own.
        stale: views of what was written to since, and the write.
        lost: tensors of which a part was written to since, and the write.
        modules: that write.
        places: of in-place operators.
    """

    def __init__(self, gm: fx.GraphModule, state: Mapping[fx.Node, str], model: str) -> None:
        self.gm, self.state, self.model = gm, state, model
        self.parents: dict[fx.Node, tuple[fx.Node, Relation]] = {}
        self.calls: dict[fx.Node, tuple[Any, Any]] = {}
        self.now: dict[fx.Node, fx.Node] = {}
        self.stale: dict[fx.Node, fx.Node] = {}
        self.lost: dict[fx.Node, fx.Node] = {}
        self.modules: dict[str, nn.Module] = {}
        self.places: list[str] = []

    def visit(self, node: fx.Node) -> None:
        module = self.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        changes, memory = writes(node, module), shared(node, module)
        if isinstance(node.kwargs.get("out"), fx.Node) and node.target not in ARGUMENTS:
            raise _told_to_make_new(node)
        self.calls[node] = node.args, node.kwargs
        node.args, node.kwargs = self._read_all(node, node)
        if memory is not None:
            self.parents[node] = memory
        if changes and memory is not None:
            self._write(node, memory[0])
            if module is not None:
                self.modules[str(node.target)] = module
            else:
                _become_pure(node)
        elif node.target in PURE:  # of numbers
            node.target = PURE[node.target]

    def replace_modules(self) -> None:
        """Put copies that make a tensor of their own in place of modules that write."""
        for name, module in self.modules.items():
            own: Any = without_children(module)  # the user's stays as it is
            own.inplace = False
            self.gm.set_submodule(name, own)

    def _read_all(self, node: fx.Node, reader: fx.Node) -> Any:
        return fx.map_arg(self.calls[node], lambda tensor: self._read(tensor, reader))

    def _read(self, tensor: fx.Node, reader: fx.Node) -> fx.Node:
        """Return the node that has the value of `tensor` where `reader` is."""
        if tensor in self.lost:
            raise self._refusal(self.lost[tensor], tensor, reader)
        if tensor in self.stale:
            parent, relation = self.parents[tensor]
            if relation is Relation.PERHAPS:
                raise self._refusal(self.stale[tensor], tensor, reader)
            if relation is Relation.SAME:
                self.now[tensor] = self._read(parent, reader)
            else:
                self.now[tensor] = self._again(tensor, reader)
            del self.stale[tensor]
        return self.now.get(tensor, tensor)

    def _again(self, view: fx.Node, reader: fx.Node) -> fx.Node:
        args, kwargs = self._read_all(view, reader)
        with self.gm.graph.inserting_before(reader):
            new = self.gm.graph.create_node(view.op, view.target, args, kwargs, view.name)
        new.meta = dict(view.meta)
        return new

    def _write(self, node: fx.Node, tensor: fx.Node) -> None:
        """Remember what `node`, which writes to `tensor`, changes."""
        self.places.append(place_of(node))
        line = self._line(tensor)
        if line[0] in self.state:
            raise UnsupportedError(
                f"model {self.model} changes {self.state[line[0]]} in evaluation; a deployed "
                "model has no state"
            )
        for other in (line[0], *self.parents):
            theirs = self._line(other)
            if theirs == line:
                self.now[other] = node
                self.stale.pop(other, None)
            elif theirs[: len(line)] == line and called(node, None) not in RESHAPING:
                self.stale[other] = node
            elif theirs[0] is line[0] and not _are_apart(line, theirs):
                self.lost[other] = node

    def _line(self, tensor: fx.Node) -> list[fx.Node]:
        """Return the tensors whose views `tensor` is, from the one that has the memory on."""
        line = [tensor]
        while line[0] in self.parents:
            parent, relation = self.parents[line[0]]
            if relation is Relation.SAME:
                line[0] = parent
            else:
                line.insert(0, parent)
        return line

    def _refusal(self, write: fx.Node, tensor: fx.Node, reader: fx.Node) -> UnsupportedError:
        return UnsupportedError(
            f"{place_of(write)} works in place on memory that {tensor.name} has too, and "
            f"{place_of(reader)} reads {tensor.name} afterwards; let it make a new tensor, "
            "as y = relu(y) does, and put parts together with torch.cat"
        )


def _told_to_make_new(node: fx.Node) -> UnsupportedError:
    return UnsupportedError(
        f"{place_of(node)} writes to a tensor in place; make a new one, y = ..., instead, "
        "and put parts together with torch.cat"
    )


def _become_pure(node: fx.Node) -> None:
    found = without_write(node)
    if found is None:
        raise _told_to_make_new(node)
    node.target, node.args, node.kwargs = found


def _are_apart(one: list[fx.Node], other: list[fx.Node]) -> bool:
    """True when two views of one tensor are of different parts, for certain."""
    for a, b in zip(one, other, strict=False):
        if a is not b:
            mine, theirs = part_of(a), part_of(b)
            return mine is not None and theirs is not None and are_apart(mine, theirs)
    return False
