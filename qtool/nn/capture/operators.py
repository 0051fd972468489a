"""What each module, function and tensor method of a traced network means to the device.

A `Kind` says which grids an operator needs: `prepare` asks nothing else about it. Torch has
several names for most operators; this is the only place that lists them.
"""

import math
import operator
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from qtool.nn.capture.arguments import floating


class Kind(Enum):
    """Role of an operator; `OTHER` is anything that has no integer form."""

    LAYER = auto()  # convolution or linear: quantizes its own input and weight
    NORM = auto()
    CLAMP = auto()  # ReLU and bounds: joined with the operator before it
    MOVE = auto()  # same values, or a maximum of them: a grid before is a grid after
    CONCAT = auto()  # a move of several tensors, which then share one grid
    AVERAGE = auto()
    ADD = auto()
    MUL = auto()
    GATE = auto()  # Sigmoid, Hardsigmoid: in [0, 1], a table on the device
    TABLE = auto()  # LeakyReLU, SiLU: a table of 256 entries on the device
    HARDSWISH = auto()
    QUANTIZER = auto()
    SHAPE = auto()  # sizes, not values
    OTHER = auto()


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# Regularisers that other libraries define; the identity in evaluation.
IDENTITY_IN_EVALUATION = ("DropPath", "StochasticDepth", "DropBlock2d")

MODULES: dict[type[nn.Module], Kind] = {
    nn.Conv2d: Kind.LAYER, nn.Linear: Kind.LAYER,
    nn.BatchNorm1d: Kind.NORM, nn.BatchNorm2d: Kind.NORM, nn.BatchNorm3d: Kind.NORM,
    nn.ReLU: Kind.CLAMP, nn.ReLU6: Kind.CLAMP, nn.Hardtanh: Kind.CLAMP,
    **dict.fromkeys(_DROPOUTS, Kind.MOVE),
    nn.Identity: Kind.MOVE, nn.Flatten: Kind.MOVE, nn.Unflatten: Kind.MOVE,
    nn.MaxPool2d: Kind.MOVE, nn.ZeroPad2d: Kind.MOVE, nn.ConstantPad2d: Kind.MOVE,
    nn.ChannelShuffle: Kind.MOVE, nn.Upsample: Kind.MOVE, nn.UpsamplingNearest2d: Kind.MOVE,
    nn.AvgPool2d: Kind.AVERAGE, nn.AdaptiveAvgPool2d: Kind.AVERAGE,
    nn.Sigmoid: Kind.GATE, nn.Hardsigmoid: Kind.GATE,
    nn.SiLU: Kind.TABLE, nn.LeakyReLU: Kind.TABLE, nn.Hardswish: Kind.HARDSWISH,
}  # fmt: skip

# Subclasses that compute the same (they add an initialisation, say) are layers too.
_PLAIN: tuple[type[Any], ...] = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)

_F = functional
_NAMES: dict[Kind, tuple[Callable[..., Any], ...]] = {
    Kind.CLAMP: (
        _F.relu, _F.relu_, torch.relu, torch.relu_, _F.relu6, _F.hardtanh, _F.hardtanh_,
    ),
    Kind.MOVE: (
        torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze,
        torch.unsqueeze, torch.unflatten, torch.narrow, torch.chunk, torch.split,
        torch.clone, torch.channel_shuffle, _F.channel_shuffle, _F.dropout, _F.dropout2d,
        _F.max_pool2d, torch.max_pool2d, _F.pad, _F.interpolate, _F.upsample,
    ),
    Kind.CONCAT: (torch.cat, torch.concat, torch.concatenate),
    Kind.AVERAGE: (_F.avg_pool2d, _F.adaptive_avg_pool2d),
    Kind.ADD: (operator.add, operator.iadd, torch.add),
    Kind.MUL: (operator.mul, operator.imul, torch.mul, torch.multiply),
    Kind.GATE: (torch.sigmoid, _F.sigmoid, _F.hardsigmoid),
    Kind.TABLE: (_F.silu, _F.leaky_relu, _F.leaky_relu_),
    Kind.HARDSWISH: (_F.hardswish,),
}  # fmt: skip
FUNCTIONS = {function: kind for kind, known in _NAMES.items() for function in known}

METHODS = dict.fromkeys(
    ("flatten", "view", "reshape", "contiguous", "permute", "transpose", "squeeze", "clone",
     "unsqueeze", "unflatten", "chunk", "split", "narrow"),
    Kind.MOVE,
) | dict.fromkeys(("size", "dim"), Kind.SHAPE)  # fmt: skip

# Neither of our operators nor negative.
_POSITIVE: tuple[Any, ...] = (
    nn.Softmax, torch.softmax, _F.softmax, "softmax", torch.abs, "abs", torch.square,
)  # fmt: skip


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """Return a call's argument, given by position or by name."""
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def is_plain(module: nn.Module) -> bool:
    """True for a layer or norm whose class, a subclass perhaps, computes nothing else."""
    own = type(module)
    return any(
        issubclass(own, kind)
        and all(
            getattr(own, name, None) is getattr(kind, name, None)
            for name in ("forward", "_conv_forward", "__call__")
        )
        for kind in _PLAIN
    )


def called(node: fx.Node, module: nn.Module | None) -> str:
    """Return the name of what `node` calls: a module's class, a function's or a method's."""
    if module is not None:
        return type(module).__name__
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return str(getattr(node.target, "__name__", node.target))


def kind_of(node: fx.Node, module: nn.Module | None) -> Kind:
    """Return what a call of `module` (or of a function or method, if None) does."""
    if node.op == "call_module":
        kind = _module_kind(module)
    elif node.op == "call_function":
        kind = FUNCTIONS.get(node.target, Kind.OTHER)  # type: ignore[arg-type]
        if node.target is getattr:
            kind = Kind.OTHER if node.args[1] in ("T", "mT", "data") else Kind.SHAPE
        elif node.target is operator.getitem and _only_slices(node.args[1]):
            kind = Kind.MOVE
    elif node.op == "call_method":
        kind = METHODS.get(str(node.target), Kind.OTHER)
    else:
        return Kind.OTHER
    return Kind.OTHER if _is_exceptional(node, module, kind) else kind


def _module_kind(module: nn.Module | None) -> Kind:
    for base in type(module).__mro__:
        if base.__name__ in IDENTITY_IN_EVALUATION:
            return Kind.MOVE
        if base in MODULES:
            return MODULES[base]
    return Kind.OTHER


def _only_slices(index: Any) -> bool:
    """True for ``x[:, 1:, None]``, and for one of several tensors, ``parts[0]``."""
    if not isinstance(index, tuple):
        return isinstance(index, int | slice)
    return all(isinstance(part, slice | type(...) | type(None)) for part in index)


def _is_exceptional(node: fx.Node, module: nn.Module | None, kind: Kind) -> bool:
    """True for options under which an operator is not what its name says."""
    if kind in (Kind.ADD, Kind.MUL):
        return bool(node.kwargs) or len(node.args) != 2
    return kind is Kind.MOVE and bool(floating(node, module))


def bounds(node: fx.Node, module: nn.Module | None) -> tuple[float, float]:
    """Return the lower and upper bound that a `Kind.CLAMP` imposes."""
    if isinstance(module, nn.ReLU6) or node.target is functional.relu6:
        return 0.0, 6.0
    if isinstance(module, nn.Hardtanh):
        return float(module.min_val), float(module.max_val)
    if node.target in (functional.hardtanh, functional.hardtanh_):
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
        return float(low), float(high)
    return 0.0, math.inf


def is_positive(node: fx.Node, module: nn.Module | None) -> bool:
    """True for operators outside the dialect whose results are never negative."""
    what = type(module) if node.op == "call_module" else node.target
    return what in _POSITIVE
