"""``nn.Module`` -> the same network with a quantizer on every edge the device will round.

Cases:
1. Convolution or linear layer [-> BatchNorm]: becomes a `QuantLayer`.
2. A tensor that is added, pooled, read by several layers, or returned: gets its own 8-bit
   *glue* grid, because on the device it exists as integers. A layer's b-bit input is then a
   second, coarser grid on the same tensor.
3. ReLU, ReLU6, Dropout, Flatten, Identity: no grid of their own.
Refuses when torch.fx cannot trace the model, a BatchNorm has no layer before it, or a layer is
called twice.

The user's classes stay as they are: torch.fx rewrites the calls between them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from qtool.errors import UnsupportedError
from qtool.nn.fake_quant import FakeQuantizer, Role
from qtool.nn.quant_layer import Layer, QuantLayer


@dataclass(frozen=True)
class QuantSpec:
    """What `prepare` puts where.

    Args:
        activation_bits: candidates of every inner layer's input.
        weight_bits: bits of every inner layer's weight.
        first_last_bits: weights and inputs of the first and the last layer.
        glue_bits: residual, pooling and output tensors.
        input_step: step of the input image's grid (unsigned, fixed).
    """

    activation_bits: tuple[int, ...] = (8, 4, 3)
    weight_bits: int = 4
    first_last_bits: int = 8
    glue_bits: int = 8
    input_step: float = 1 / 255


_RELUS = (nn.ReLU, nn.ReLU6)
_RELU_CALLS = (functional.relu, functional.relu6, torch.relu)
# Same values, or a maximum of them: a grid before them is a grid after them.
_MOVES = (nn.Dropout, nn.Identity, nn.Flatten, nn.MaxPool2d)
_MOVE_CALLS = (torch.flatten, functional.dropout, functional.max_pool2d)
_MOVE_METHODS = ("flatten", "view", "reshape")
# Averages of unsigned values are unsigned.
_AVERAGES = (nn.AdaptiveAvgPool2d,)
_AVERAGE_CALLS = (functional.adaptive_avg_pool2d,)


def prepare(model: nn.Module, spec: QuantSpec) -> fx.GraphModule:
    """Return a `torch.fx.GraphModule` of `model` with quantizers, all of them off (float).

    The result shares the parameters of `model`, and no module with it that it changed.
    """
    try:
        graph_module = fx.symbolic_trace(model)
    except Exception as error:  # torch.fx raises many types, all about the user's forward()
        raise UnsupportedError(
            f"model {type(model).__name__} cannot be traced: {error}"
        ) from error
    return _Preparer(graph_module, spec).run()


class _Preparer:
    """One walk over the fx graph for the layers, one for the glue."""

    def __init__(self, graph_module: fx.GraphModule, spec: QuantSpec) -> None:
        self.gm = graph_module
        self.modules = dict(graph_module.named_modules())
        self.spec = spec

    def run(self) -> fx.GraphModule:
        layers = [
            node for node in self.gm.graph.nodes if self._is(node, (nn.Conv2d, nn.Linear))
        ]
        for node in layers:
            self._quantize_layer(node, first=node is layers[0], last=node is layers[-1])
        self.modules = dict(self.gm.named_modules())
        for node in list(self.gm.graph.nodes):
            self._refuse_lone_norm(node)
            if self._needs_glue(node):
                self._insert_glue(node)
        self.gm.graph.lint()
        self.gm.recompile()
        self.gm.delete_all_unused_submodules()
        return self.gm

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[cast(str, node.target)] if node.op == "call_module" else None

    def _is(self, node: fx.Node, kinds: tuple[type, ...]) -> bool:
        return isinstance(self._module(node), kinds)

    def _calls(self, node: fx.Node, functions: tuple[Callable[..., Any], ...]) -> bool:
        return node.op == "call_function" and node.target in functions

    def _is_relu(self, node: fx.Node) -> bool:
        return self._is(node, _RELUS) or self._calls(node, _RELU_CALLS)

    def _is_move(self, node: fx.Node) -> bool:
        method = node.op == "call_method" and node.target in _MOVE_METHODS
        return method or self._is(node, _MOVES) or self._calls(node, _MOVE_CALLS)

    def _quantize_layer(self, node: fx.Node, first: bool, last: bool) -> None:
        name, module = cast(str, node.target), self._module(node)
        if isinstance(module, QuantLayer):
            raise UnsupportedError(
                f"layer {name} is called more than once; its inputs would share one grid"
            )
        layer = cast(Layer, module)
        norm_node = self._following_norm(node)
        norm = cast(nn.BatchNorm2d, self._module(norm_node)) if norm_node else None
        ends = (self.spec.first_last_bits,)
        act_bits = ends if first or last else self.spec.activation_bits
        weight_bits = ends if first or last else (self.spec.weight_bits,)
        source = cast(fx.Node, node.args[0])
        step = self.spec.input_step if source.op == "placeholder" else None
        input_quant = FakeQuantizer(
            name, "activation", act_bits, self._is_signed(source), step=step
        )
        channels = layer.weight.shape[0]
        weight_quant = FakeQuantizer(
            name, "weight", weight_bits, signed=True, channels=channels
        )
        quant = QuantLayer(name, layer, norm, input_quant, weight_quant)
        self.gm.set_submodule(name, quant)
        self.modules[name] = quant
        if norm_node is not None:
            norm_node.replace_all_uses_with(node)
            self.gm.graph.erase_node(norm_node)
            # It lives on inside the QuantLayer; its old name would save it twice.
            self.gm.delete_submodule(cast(str, norm_node.target))

    def _following_norm(self, node: fx.Node) -> fx.Node | None:
        users = list(node.users)
        alone = len(users) == 1 and self._is(users[0], (nn.BatchNorm2d,))
        return users[0] if alone else None

    def _refuse_lone_norm(self, node: fx.Node) -> None:
        if self._is(node, (nn.modules.batchnorm._BatchNorm,)):
            raise UnsupportedError(
                f"layer {node.target}: BatchNorm with no convolution right before it "
                "cannot be folded"
            )

    def _is_signed(self, node: fx.Node) -> bool:
        """False when `node`'s values are provably >= 0."""
        if node.op == "placeholder" or self._is_relu(node):
            return False
        keeps_sign = self._is(node, _AVERAGES) or self._calls(node, _AVERAGE_CALLS)
        if keeps_sign or self._is_move(node) or self._is(node, (FakeQuantizer,)):
            return self._is_signed(cast(fx.Node, node.args[0]))
        return True

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the nodes that read `node`'s values, looking through data movement."""
        for user in node.users:
            if self._is_move(user):
                yield from self._readers(user)
            else:
                yield user

    def _needs_glue(self, node: fx.Node) -> bool:
        """True when `node` makes values that some reader does not quantize for itself."""
        if node.op in ("placeholder", "output", "get_attr") or self._is_move(node):
            return False
        readers = list(self._readers(node))
        if len(readers) == 1:
            return not (self._is(readers[0], (QuantLayer,)) or self._is_relu(readers[0]))
        return len(readers) > 1

    def _insert_glue(self, node: fx.Node) -> None:
        is_output = any(reader.op == "output" for reader in self._readers(node))
        role: Role = "output" if is_output else "glue"
        name = f"glue_{node.name}"
        quantizer = FakeQuantizer(name, role, (self.spec.glue_bits,), self._is_signed(node))
        self.gm.add_submodule(name, quantizer)
        self.modules[name] = quantizer
        with self.gm.graph.inserting_after(node):
            glue = self.gm.graph.call_module(name, (node,))
        node.replace_all_uses_with(glue, delete_user_cb=lambda user: user is not glue)
