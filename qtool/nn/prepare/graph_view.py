"""Questions about a traced network that `prepare` and its rewrites ask."""

import operator
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import fx, nn

from qtool.nn.capture.operators import Kind, bounds, is_positive, kind_of
from qtool.nn.modules.affine import QuantAffine
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quant_layer import QuantLayer

# Key of a node's meta: why it has no integer form, though others of its kind have.
FLOAT = "qtool_float"
# Their results are no numbers on a grid.
_TRUTHS: tuple[Any, ...] = (
    *(getattr(operator, name) for name in ("gt", "ge", "lt", "le", "eq", "ne", "not_")),
    *(getattr(torch, name) for name in ("gt", "ge", "lt", "le", "eq", "ne", "argmax")),
    *("gt", "ge", "lt", "le", "eq", "ne", "argmax", "bool", "isnan"), torch.isnan,
    torch.logical_and, torch.logical_or, torch.logical_not,
)  # fmt: skip


class GraphView:
    """Looks at the nodes of `gm` as operators on tensors; changes nothing."""

    def __init__(self, gm: fx.GraphModule, signed_input: bool) -> None:
        self.gm, self.signed_input = gm, signed_input

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes in order, safe to edit meanwhile."""
        return list(self.gm.graph.nodes)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that `node` calls, None for other nodes."""
        if node.op != "call_module":
            return None
        return self.gm.get_submodule(cast(str, node.target))

    def kind(self, node: fx.Node) -> Kind:
        """Return what `node` does."""
        module = self.module(node)
        if isinstance(module, FakeQuantizer):
            return Kind.QUANTIZER
        if isinstance(module, QuantLayer):
            return Kind.LAYER
        if isinstance(module, QuantAffine):
            return Kind.NORM
        kind = Kind.OTHER if FLOAT in node.meta else kind_of(node, module)
        return Kind.SHAPE if kind is not Kind.SHAPE and self._computes_size(node) else kind

    def _computes_size(self, node: fx.Node) -> bool:
        """True for arithmetic on sizes: ``x.size(1) // 2``, ``x.shape[0]``."""
        inputs = node.all_input_nodes
        if node.op != "call_function" or not inputs:
            return False
        return all(self.kind(source) is Kind.SHAPE for source in inputs)

    def source(self, node: fx.Node) -> fx.Node:
        """Return the (first) tensor that `node` reads."""
        return node.all_input_nodes[0]

    def bounds(self, node: fx.Node) -> tuple[float, float] | None:
        """Return the bounds of a clamp, None for other operators."""
        if self.kind(node) is not Kind.CLAMP:
            return None
        return bounds(node, self.module(node))

    def readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the nodes that read `node`'s values, looking through data movement."""
        for user in node.users:
            kind = self.kind(user)
            if kind is Kind.MOVE and self.source(user) is node:
                yield from self.readers(user)
            elif kind is not Kind.SHAPE and kind is not Kind.MOVE:
                yield user

    def next_layer(self, node: fx.Node) -> str:
        """Return the name of the first layer that reads what `node` makes, "" if none does.

        It may read it through any operators; of two paths the one with fewer counts.
        """
        waiting = list(node.users)
        seen = set(waiting)
        for user in waiting:
            module = self.module(user)
            if isinstance(module, QuantLayer):
                return module.name
            fresh = [other for other in user.users if other not in seen]
            seen.update(fresh)
            waiting += fresh
        return ""

    def origin(self, node: fx.Node) -> fx.Node:
        """Return the node whose values `node` only moves, perhaps itself."""
        while self.kind(node) is Kind.MOVE:
            node = self.source(node)
        return node

    def is_tuple(self, node: fx.Node) -> bool:
        """True when `node` is outside the dialect and makes several tensors."""
        return self.kind(node) is Kind.OTHER and any(
            user.target is operator.getitem and isinstance(user.args[1], int)
            for user in node.users
        )

    def makes_values(self, node: fx.Node) -> bool:
        """True when `node` computes a tensor, so that it may need a grid of its own."""
        if node.op in ("placeholder", "output", "get_attr") or self.is_tuple(node):
            return False
        if node.target in _TRUTHS:
            return False
        kind = self.kind(node)
        if kind is Kind.MOVE and node.target is operator.getitem:
            return self.is_tuple(self.source(node))
        return kind not in (Kind.MOVE, Kind.SHAPE, Kind.QUANTIZER)

    def is_signed(self, node: fx.Node) -> bool:
        """False when `node`'s values are provably >= 0."""
        if node.op == "placeholder":
            return self.signed_input
        module, kind, sources = self.module(node), self.kind(node), node.all_input_nodes
        if isinstance(module, FakeQuantizer):
            return module.signed
        if kind is Kind.CLAMP:
            low, _ = bounds(node, module)
            return low < 0 and self.is_signed(sources[0])
        if kind is Kind.GATE:
            return False
        if kind in (Kind.MOVE, Kind.AVERAGE):
            return self.is_signed(sources[0])
        if kind is Kind.CONCAT:
            return any(self.is_signed(source) for source in sources)
        if kind is Kind.MUL:
            return self._product_is_signed(node)
        return not is_positive(node, module)

    def _product_is_signed(self, node: fx.Node) -> bool:
        a, b = node.args[:2]
        if a is b:
            return False
        signs = [
            self.is_signed(factor) if isinstance(factor, fx.Node) else cast(float, factor) < 0
            for factor in (a, b)
        ]
        return any(signs)
