"""What in a captured network has no place on the device: all of it, by the user's names.

1. Layers that cannot be quantized (`layer_refusals`): called twice, padded with something else
   than zeros, a BatchNorm without running statistics.
2. Linear layers of other tensors than (N, features) (`shape_refusals`).
3. Operators that would run in floating point (`float_operators`): those of `Kind.OTHER`, and
   sums and products with constants, which no grid closes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from qtool.nn.capture.arguments import floating, lost
from qtool.nn.capture.operators import Kind, argument, called
from qtool.nn.capture.place import place_of
from qtool.nn.prepare.constants import (
    LAYER_FUNCTIONS,
    alive,
    computed_constants,
    dependent,
)
from qtool.nn.prepare.graph_view import FLOAT, GraphView
from qtool.nn.prepare.normal_form import Sizes

# Of `Kind.OTHER`, since they need no grids of their own, and yet integers on the device:
# tables, bounds, moves, and what changes nothing.
_INTEGER = (
    "tanh", "Tanh", "clamp", "clamp_min", "clamp_max", "clip", "swapaxes", "movedim",
    "unflatten", "narrow", "mT", "getattr", "float", "to", "type_as", "detach",
    "AlphaDropout", "FeatureAlphaDropout", "alpha_dropout", "feature_alpha_dropout",
    "max_pool2d_with_indices", "adaptive_max_pool2d", "AdaptiveMaxPool2d",
)  # fmt: skip
_ONE = (1, (1, 1), [1, 1])
_INSTEAD = {
    "GELU": "SiLU or Hardswish", "gelu": "silu or hardswish", "ELU": "LeakyReLU",
    "elu": "leaky_relu", "Mish": "SiLU or Hardswish", "mish": "silu or hardswish",
    "PReLU": "LeakyReLU", "Softplus": "ReLU", "LayerNorm": "BatchNorm2d",
    "GroupNorm": "BatchNorm2d", "InstanceNorm2d": "BatchNorm2d", "softmax": "the logits",
    "Softmax": "the logits", "log_softmax": "the logits", "LogSoftmax": "the logits",
    "AdaptiveMaxPool2d": "AdaptiveAvgPool2d",
}  # fmt: skip


def layer_refusals(view: GraphView) -> list[str]:
    """Return why layers and norms of `view` cannot be quantized."""
    calls: dict[str, int] = {}
    found = []
    for node in view.nodes:
        module = view.module(node)
        if dropped := lost(node, module):
            what = f"{called(node, module)} with {', '.join(dropped)}"
            found.append(f"{place_of(node)}: {what} has no form on the device; leave it out")
        if view.kind(node) not in (Kind.LAYER, Kind.NORM) or module is None:
            continue
        name = str(node.target)
        calls[name] = calls.get(name, 0) + 1
        if calls[name] == 2:
            found.append(
                f"layer {name} is called more than once; its inputs would share one grid"
            )
        elif calls[name] == 1:
            found += _faults_of(name, module)
    return found


def _faults_of(name: str, module: nn.Module) -> Iterator[str]:
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        yield f"layer {name}: padding mode {module.padding_mode!r}; use zeros"
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        yield (
            f"layer {name}: BatchNorm without running statistics; the device has no batch "
            "to take them from"
        )


def shape_refusals(view: GraphView, sizes: Sizes) -> list[str]:
    """Return which linear layers of `view` are given tensors of other ranks than 2."""
    found = []
    for node in view.nodes:
        if isinstance(view.module(node), nn.Linear):
            size = sizes(view.source(node))
            if size is not None and len(size) != 2:
                shape = ", ".join(map(str, ("N", *size[1:])))
                found.append(
                    f"layer {node.target}: Linear of a tensor ({shape}); (N, features) is "
                    "supported: flatten it, or use a 1x1 Conv2d on (N, channels, H, W)"
                )
    return found


def float_operators(view: GraphView) -> list[str]:
    """Return every operator of `view` that would run in floating point, and what to use."""
    places: dict[str, list[str]] = {}
    for node in _computing(view):
        if _is_float(view, node):
            places.setdefault(_what(view, node), []).append(place_of(node))
    return [_sentence(what, where) for what, where in places.items()]


def _what(view: GraphView, node: fx.Node) -> str:
    """Return what is called, with the options for which it has no integer form."""
    name, options = called(node, view.module(node)), floating(node, view.module(node))
    if FLOAT in node.meta:
        return f"{name} {node.meta[FLOAT]},"
    if view.kind(node) is Kind.NORM:
        return f"{name} that no linear layer before it takes in"
    if name in LAYER_FUNCTIONS:
        return f"{name} with computed weights"
    if view.kind(node) in (Kind.ADD, Kind.MUL):
        return f"{name} with a constant"
    return f"{name} with {', '.join(options)}" if options else name


def _sentence(what: str, where: list[str]) -> str:
    instead = f"; use {_INSTEAD[what]} instead" if what in _INSTEAD else ""
    return f"{what} has no integer form ({', '.join(dict.fromkeys(where))}){instead}"


def _computing(view: GraphView) -> list[fx.Node]:
    """Return the nodes that the result depends on, and that depend on the image, in order."""
    refused = [n for n in computed_constants(view) if called(n, None) in LAYER_FUNCTIONS]
    moving = dependent(view, by_size=True)
    return [node for node in alive(view) if node in moving and node not in refused]


def _is_float(view: GraphView, node: fx.Node) -> bool:
    if node.op in ("placeholder", "output", "get_attr"):
        return False
    kind, module = view.kind(node), view.module(node)
    if kind is Kind.OTHER:
        return called(node, module) not in _INTEGER or _is_other_form(node, module)
    if kind in (Kind.ADD, Kind.MUL):
        return sum(arg.op != "get_attr" for arg in _operands(node)) < 2
    if kind is Kind.NORM:
        return not (isinstance(module, nn.BatchNorm2d) or _is_absorbed(view, node))
    return bool(floating(node, module))


def _is_absorbed(view: GraphView, norm: fx.Node) -> bool:
    """True for a BatchNorm1d that the linear layer before it takes in."""
    source = view.source(norm)
    of_linear = isinstance(view.module(source), nn.Linear) and len(source.users) == 1
    return of_linear and isinstance(view.module(norm), nn.BatchNorm1d)


def _is_other_form(node: fx.Node, module: nn.Module | None) -> bool:
    """True for calls of `_INTEGER` that compute: into another type, a maximum of all."""
    types = [arg for arg in node.args if isinstance(arg, torch.dtype)]
    size: Any = argument(node, 1, "output_size")
    if isinstance(module, nn.AdaptiveMaxPool2d):
        size = module.output_size
    is_maximum = called(node, module).lower().replace("_", "").startswith("adaptivemax")
    return any(t != torch.float32 for t in types) or (is_maximum and size in _ONE)


def _operands(node: fx.Node) -> list[fx.Node]:
    values = (*node.args, *node.kwargs.values())
    return [value for value in values if isinstance(value, fx.Node)]
