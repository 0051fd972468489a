"""Which nodes of a traced network write in place, and which share memory with another.

Torch's schemas say it of most operators: ``relu_(Tensor(a!) self)`` writes,
``transpose(Tensor(a) self) -> Tensor(a)`` is a view. What they do not say is listed here.
"""

import inspect
import operator
from enum import Enum, auto
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from qtool.nn.capture.operators import IDENTITY_IN_EVALUATION, called


class Relation(Enum):
    """Of a tensor to the one whose memory it shares."""

    SAME = auto()  # all of it, in the same shape
    VIEW = auto()  # a part, or another shape
    PERHAPS = auto()  # the tensor itself, a view or a copy


_SAME = ("detach", "alias", "data", "Identity", "requires_grad_", "detach_")
_VIEWS = ("T", "mT", "H", "mH", "Unflatten")
_PERHAPS = (
    "reshape", "reshape_as", "ravel", "flatten", "contiguous", "to", "float", "type",
    "type_as", "cpu", "cuda", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout", "Flatten", "ChannelShuffle", "PixelShuffle", "PixelUnshuffle",
    "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout",
    "positive", "pos", "real", "conj", *IDENTITY_IN_EVALUATION,
)  # fmt: skip
# Of these, too, the name ends in "_", but no value changes.
_NO_WRITES = ("requires_grad_", "detach_")
# They change the shape of a tensor, and not that of its views.
RESHAPING = ("squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_")
# Python's operators: ``+=`` and ``+``.
PURE: dict[Any, Any] = {
    getattr(operator, f"i{name}"): getattr(operator, name, None)
    or getattr(operator, f"{name}_")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
}
_TORCH = (torch, nn.functional, torch._C._nn)
_SIZES = ("size", "dim", "numel", "stride", "shape", "ndim", "ndimension", "nelement")
_END = 2**63 - 1  # of ``x[1:]``, as torch.export writes it


def writes(node: fx.Node, module: nn.Module | None) -> bool:
    """True when `node` changes its first argument, a tensor, and returns it."""
    name = called(node, module)
    if module is not None:
        return getattr(module, "inplace", False) is True
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable) and name not in _NO_WRITES
    if node.op == "call_method":
        return name[-1:] == "_" and name[-2:] != "__" and name not in _NO_WRITES
    if node.op != "call_function" or not node.args:
        return False
    if node.target in PURE:
        return not _is_size(node.args[0])
    by_name = name[-1:] == "_" and any(getattr(m, name, 0) is node.target for m in _TORCH)
    return by_name or _is_told_to(node)


def without_write(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Return (target, args, kwargs) of a call that makes a tensor of its own instead."""
    target: Any = node.target
    if called(node, None) == "copy_":
        return None
    if isinstance(target, torch._ops.OpOverload):
        found: Any = _aten_without_write(target)
    elif node.op == "call_method":
        found = _stem(target) if callable(getattr(torch.Tensor, _stem(target), None)) else None
    elif target in PURE:
        found = PURE[target]
    elif _is_told_to(node):
        return target, *_not_told_to(node)
    else:
        forms = (getattr(place, _stem(target.__name__), None) for place in _TORCH)
        found = next((form for form in forms if form is not None), None)
    return None if found is None else (found, node.args, dict(node.kwargs))


def _aten_without_write(op: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """Return the operator that takes what `op` takes; its overload may be called otherwise."""
    packet = getattr(torch.ops.aten, _stem(op.overloadpacket.__name__), None)
    for name in () if packet is None else packet.overloads():
        found: torch._ops.OpOverload = getattr(packet, name)
        if not found._schema.is_mutable and _taken(found) == _taken(op):
            return found
    return None


def _taken(op: torch._ops.OpOverload) -> list[tuple[str, str]]:
    """Return names and types; the first is called self, or input."""
    return [(a.name if i else "", str(a.type)) for i, a in enumerate(op._schema.arguments)]


def _stem(name: str) -> str:
    return name.removesuffix("_")


def _is_told_to(node: fx.Node) -> bool:
    """True for ``relu(x, inplace=True)``."""
    parameters = _parameters(node.target)
    if "inplace" not in parameters:
        return False
    index = parameters.index("inplace")
    given = node.args[index] if index < len(node.args) else node.kwargs.get("inplace")
    return given is True


def _not_told_to(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    index = _parameters(node.target).index("inplace")
    args = (*node.args[:index], *(False for _ in node.args[index : index + 1]))
    return args + node.args[index + 1 :], node.kwargs | (
        {"inplace": False} if "inplace" in node.kwargs else {}
    )


@cache
def _parameters(function: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin
        return ()


def _is_size(value: Any) -> bool:
    """True for sizes and what is computed of them: ``n += 1`` makes a new number."""
    if not isinstance(value, fx.Node):
        return True
    if value.op == "call_method":
        return value.target in _SIZES
    if value.target is getattr:
        return value.args[1] in _SIZES
    sources = value.all_input_nodes
    counts = getattr(value.target, "__module__", "") in ("_operator", "math", "builtins")
    return counts and bool(sources) and all(map(_is_size, sources))


def shared(node: fx.Node, module: nn.Module | None) -> tuple[fx.Node, Relation] | None:
    """Return the tensor whose memory `node` shares, and how; None: it makes a new one."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or node.op == "output":
        return None
    name = called(node, module)
    if node.target is getattr:
        name = str(node.args[1])
    if writes(node, module) or name in _SAME or _is_whole(node):
        return first, Relation.SAME
    if isinstance(node.target, torch._ops.OpOverload) and name == "contiguous":
        return None  # torch.export leaves it out where it is no copy
    if name in _PERHAPS:
        return first, Relation.PERHAPS
    if node.target is operator.getitem:
        return (first, Relation.VIEW) if _is_basic(node.args[1]) else None
    if node.target is nn.functional.unfold:  # a copy; the method of that name makes a view
        return None
    if name in _VIEWS or (module is None and _is_view(name)):
        return first, Relation.VIEW
    return None


def _is_whole(node: fx.Node) -> bool:
    """True for the ``x[:]`` that torch.export starts every index with."""
    is_slice = node.target is torch.ops.aten.slice.Tensor
    return is_slice and tuple(node.args[2:]) == (0, _END)


def _is_basic(index: Any) -> bool:
    """True for indices that make a view: no tensors, and no lists."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        isinstance(part, int | slice | type(...) | type(None))
        or (isinstance(part, fx.Node) and _is_size(part))
        for part in parts
    )


@cache
def _is_view(name: str) -> bool:
    """True when a schema of aten's operator `name` says that its result is a view."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return any(
        result.alias_info is not None and not result.alias_info.is_write
        for schema in schemas
        for result in schema.returns
    )


def part_of(node: fx.Node) -> tuple[Any, ...] | None:
    """Return the index of the part that `node` is, None where it is no part by an index."""
    args: tuple[Any, ...] = node.args
    if node.target is operator.getitem:
        return args[1] if isinstance(args[1], tuple) else (args[1],)
    if node.target is torch.ops.aten.slice.Tensor and len(args) == 4:
        last: Any = slice(args[2], None if args[3] == _END else args[3])
    elif node.target is torch.ops.aten.select.int:
        last = args[2]
    else:
        return None
    return (*(slice(None) for _ in range(args[1])), last)


def are_apart(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """True when two indices of one tensor have no element in common, for certain."""
    for a, b in zip(one, other, strict=False):
        if not (isinstance(a, int | slice) and isinstance(b, int | slice)):
            return False
        if isinstance(a, int) and isinstance(b, int):
            if a != b and (a < 0) == (b < 0):
                return True
        elif isinstance(a, slice) and isinstance(b, slice) and (_ends(a, b) or _ends(b, a)):
            return True
    return False


def _ends(a: slice, b: slice) -> bool:
    """True when `a` ends before `b` starts."""
    if not (isinstance(a.stop, int) and isinstance(b.start, int)):
        return False
    forward = (a.step is None or a.step == 1) and (b.step is None or b.step == 1)
    return forward and a.stop <= b.start and (a.stop < 0) == (b.start < 0)
