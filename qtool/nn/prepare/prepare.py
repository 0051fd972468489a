"""``nn.Module`` -> the same network with a quantizer on every edge the device will round.

Cases:
1. Convolution or linear layer [-> BatchNorm]: becomes a `QuantLayer`.
2. BatchNorm that no layer absorbs: becomes a `QuantAffine`, its input on a grid.
3. A tensor that is added, multiplied, pooled, looked up (Sigmoid, SiLU, ...), read by several
   layers, or returned: gets its own 8-bit *glue* grid, because on the device it exists as
   integers. A layer's b-bit input is then a second, coarser grid on the same tensor, or this
   grid itself where the bits are the same (`qtool.nn.modules.shared_grid`).
   Results of Sigmoid and Hardsigmoid have the fixed grid 1/255.
4. Concatenated tensors share the grid of the result; they need none of their own.
5. ReLU, ReLU6, and moves (Dropout, Flatten, Reshape, Pad, chunk, ...): no grid of their own.
6. Any other operator stays as it is, between grids: the export refuses it or leaves it float.
Refuses when the model cannot be traced, or a layer is called twice.

The user's classes stay as they are: `qtool.nn.capture.capture` rewrites the calls between
them.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._pytree import tree_map

from qtool.core.errors import UnsupportedError
from qtool.nn.capture.capture import capture
from qtool.nn.capture.compare import evaluating
from qtool.nn.capture.operators import Kind
from qtool.nn.capture.place import fresh, part_at, put, take_out
from qtool.nn.modules.affine import QuantAffine
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quant_layer import Layer, Norm, QuantLayer
from qtool.nn.modules.quantizer import Role
from qtool.nn.modules.shared_grid import SharedGrid
from qtool.nn.modules.weight_quant import WeightQuantizer
from qtool.nn.ops.on_grid import values
from qtool.nn.prepare.defer import defer
from qtool.nn.prepare.graph_view import GraphView
from qtool.nn.prepare.normal_form import Sizes, normalise
from qtool.nn.prepare.refusals import layer_refusals
from qtool.nn.prepare.spec import LayerSpec, QuantSpec
from qtool.quantizers import weight_quantizer
from qtool.quantizers.weight import WeightOptions

__all__ = ["LayerSpec", "QuantSpec", "prepare"]


def prepare(
    model: nn.Module,
    spec: QuantSpec,
    input_shape: Sequence[int] | None = None,
    integer_only: bool = True,
) -> fx.GraphModule:
    """Return a `torch.fx.GraphModule` of `model` with quantizers, all of them off (float).

    The result shares the parameters of `model`, and no module with it that it changed.

    Args:
        model: the user's network; its classes need not know about qtool.
        spec: bits and grids.
        input_shape: (C, H, W); needed when torch.fx cannot trace `model` (torch.export then
            does), or it pools adaptively to more than one position.
        integer_only: give every tensor between layers a grid, so that training sees all the
            device's rounding. False: only layer inputs and weights; whoever exports the model
            calibrates the rest.

    Raises:
        UnsupportedError: the model cannot be traced; a layer is called twice; names it.
        UserError: `spec` names a layer that is not there, or bits out of range.
    """
    view = GraphView(capture(model, input_shape), spec.input_step is None)
    normalise(view, sizes_of(view, input_shape))
    return _Preparer(view, spec).run(integer_only)


def sizes_of(view: GraphView, input_shape: Sequence[int] | None) -> Sizes:
    """Return a function from node to the size of its result, by running the model once."""
    known: dict[fx.Node, tuple[int, ...]] = {}

    def size(node: fx.Node) -> tuple[int, ...] | None:
        if input_shape is not None and node not in known:
            _propagate(view.gm, input_shape)
            for other in view.nodes:
                meta = other.meta.pop("tensor_meta", None)
                if hasattr(meta, "shape"):
                    known[other] = tuple(meta.shape)
        return known.get(node)

    return size


def _propagate(gm: fx.GraphModule, input_shape: Sequence[int]) -> None:
    try:
        with evaluating(gm), torch.no_grad():
            ShapeProp(gm).propagate(torch.zeros(1, *input_shape))
    except RuntimeError as error:
        shape = "x".join(map(str, input_shape))
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedError(f"input {shape} does not fit the model: {reason}") from error


class _Preparer:
    """Puts quantizers into the graph: at the layers first, then between them."""

    def __init__(self, view: GraphView, spec: QuantSpec) -> None:
        self.view, self.spec = view, spec
        self.gm = view.gm

    def run(self, integer_only: bool) -> fx.GraphModule:
        if refusals := layer_refusals(self.view):
            raise UnsupportedError("; ".join(refusals))
        layers = [node for node in self.view.nodes if self.view.kind(node) is Kind.LAYER]
        self.spec.check(dict.fromkeys(str(node.target) for node in layers))
        ends = {*layers[:1], *([] if self.spec.open_end else layers[-1:])}
        for node in layers:
            self._quantize_layer(node, node in ends)
        if integer_only:
            for node in self.view.nodes:
                if self._needs_glue(node):
                    self._insert_glue(node)
        for node in self.view.nodes:
            if isinstance(self.view.module(node), nn.BatchNorm2d):
                self._quantize_norm(node)
        defer(self.view)
        self.gm.graph.lint()
        self.gm.recompile()
        self.gm.delete_all_unused_submodules()
        # Nobody outside needs to know of lazy tensors.
        self.gm.register_forward_hook(_plain_result)
        return self.gm

    def _quantizer(
        self,
        name: str,
        role: Role,
        bits: tuple[int, ...],
        source: fx.Node,
        kind: str = "lsq",
    ) -> FakeQuantizer:
        """Return a quantizer of `source`'s values; the image's and gates' steps are fixed."""
        origin, step = self.view.origin(source), None
        if origin.op == "placeholder":
            step = self.spec.input_step
        elif role in ("glue", "output") and self.view.kind(origin) is Kind.GATE:
            step = 1 / ((1 << bits[0]) - 1)
        signed, bounds = self.view.is_signed(source), self.view.bounds(origin)
        ceiling = math.inf if bounds is None or bounds[1] <= 0 else bounds[1]
        return FakeQuantizer(
            name, role, bits, signed, step=step, asymmetric=self.spec.asymmetric,
            ceiling=ceiling, kind=kind if step is None else "lsq", shared=self.spec.shared,
        )  # fmt: skip

    def _quantize_layer(self, node: fx.Node, is_end: bool) -> None:
        name = str(node.target)
        layer, source = cast(Layer, part_at(self.gm, name)), self.view.source(node)
        norm_node = self._following_norm(node, layer)
        norm = cast(Norm, part_at(self.gm, str(norm_node.target))) if norm_node else None
        is_end = is_end or self.view.origin(source).op == "placeholder"
        plan, spec = self.spec.of(name, is_end), self.spec
        per_channel = spec.per_channel
        if per_channel is None:
            per_channel = weight_quantizer(plan.weight).per_channel
        weight_quant = WeightQuantizer(
            name,
            plan.weight_bits,
            layer.weight.shape[0],
            plan.weight,
            spec.shared,
            WeightOptions(per_channel, rescale=norm is None),
        )
        input_quant = self._quantizer(
            name, "activation", plan.activation_bits, source, plan.activation
        )
        weight_quant.keeps_bits = input_quant.keeps_bits = is_end and spec.ends_keep
        quantized = QuantLayer(name, layer, norm, input_quant, weight_quant, is_end)
        put(self.gm, name, quantized)
        if norm_node is not None:
            norm_node.replace_all_uses_with(node)
            self.gm.graph.erase_node(norm_node)
            # It lives on inside the QuantLayer; its old name would save it twice.
            take_out(self.gm, str(norm_node.target))

    def _following_norm(self, node: fx.Node, layer: Layer) -> fx.Node | None:
        users = list(node.users)
        kind = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
        alone = len(users) == 1 and isinstance(self.view.module(users[0]), kind)
        return users[0] if alone else None

    def _quantize_norm(self, node: fx.Node) -> None:
        name = str(node.target)
        norm = cast(nn.BatchNorm2d, part_at(self.gm, name))
        grid = self.view.module(self.view.origin(self.view.source(node)))
        found = grid if isinstance(grid, FakeQuantizer) else None
        layer = self.view.next_layer(node)
        put(self.gm, name, QuantAffine(name, norm, found, layer))

    def _needs_glue(self, node: fx.Node) -> bool:
        """True when `node` makes values that some reader does not quantize for itself."""
        readers = [self.view.kind(reader) for reader in self.view.readers(node)]
        if node.op == "placeholder":
            return any(kind is not Kind.LAYER for kind in readers)
        if not self.view.makes_values(node) or not readers:
            return False
        if len(readers) > 1 or readers[0] is Kind.LAYER:
            return len(readers) > 1
        if self.view.kind(node) is Kind.CONCAT:
            return readers[0] is not Kind.CONCAT
        return readers[0] not in (Kind.CLAMP, Kind.CONCAT)

    def _insert_glue(self, node: fx.Node) -> None:
        is_output = any(reader.op == "output" for reader in self.view.readers(node))
        role: Role = "output" if is_output else "glue"
        role = "input" if node.op == "placeholder" else role
        name = fresh(self.gm, f"glue_{node.name}")
        quantizer = self._quantizer(name, role, (self.spec.glue_bits,), node)
        self.gm.add_submodule(name, quantizer)
        for reader in self.view.readers(node):
            _share(self.view.module(reader), quantizer)
        with self.gm.graph.inserting_after(node):
            glue = self.gm.graph.call_module(name, (node,))
        node.replace_all_uses_with(glue, delete_user_cb=lambda user: user is not glue)


def _plain_result(_model: nn.Module, _inputs: object, result: object) -> object:
    return tree_map(values, result)


def _share(reader: nn.Module | None, grid: FakeQuantizer) -> None:
    """Let a layer that reads a tensor at the bits of its grid read it on that grid."""
    own = reader.input_quant if isinstance(reader, QuantLayer) else None
    if isinstance(reader, QuantLayer) and isinstance(own, FakeQuantizer):
        mine = (own.bits, own.signed, own.asymmetric, own.kind)
        if mine == (grid.bits, grid.signed, grid.asymmetric, grid.kind):
            reader.input_quant = SharedGrid(reader.name, grid)
            reader.input_quant.keeps_bits = own.keeps_bits
