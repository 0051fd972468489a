"""Every argument of every operator that has an integer form: read, or not at another value.

`ARGUMENTS` has a line for each module class, function and method that `operators` knows, with
all of its arguments. Those in `names` are read: by the rewrites of `modularise` and
`normal_form`, or by torch itself, which still makes that call. Of the others

    only      values that have a faithful form; with others the operator is refused, by name
    integer   values that have an integer form; with others it is an operator in floating point

`inplace` is False by then (`qtool.nn.capture.in_place`), `out` would be lost. A test compares
the table with the signatures and operator schemas of the torch that is installed.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

_F = functional


@dataclass(frozen=True)
class Arguments:
    """The arguments of one operator.

    Args:
        names: all of them, in the order of a call; "self" and "input" are one.
        only: accepted values of those that would otherwise be lost.
        integer: values with an integer form.
    """

    names: str
    only: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    integer: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def all(self) -> tuple[str, ...]:
        """Every argument's name."""
        return tuple(dict.fromkeys((*self.names.split(), *self.only, *self.integer)))


_NO_OUT: dict[str, tuple[Any, ...]] = {"out": (None,)}
_X, _INPLACE = Arguments("input", _NO_OUT), Arguments("input inplace")
_DROPOUT, _PLAIN = Arguments("p inplace"), Arguments("")
_SLOPE = Arguments("input negative_slope inplace")
_HARDTANH = Arguments("input min_val max_val inplace")
_RANGE = Arguments("input start_dim end_dim dims out_dim")
_BOTH = Arguments("input other", _NO_OUT, {"alpha": (1,)})
_PARTS = Arguments("input chunks dim")
_SPLIT = Arguments("input split_size split_sizes split_size_or_sections dim")
_CAT = Arguments("tensors dim axis", _NO_OUT)
_COPY = Arguments("input memory_format", _NO_OUT)
_NARROW = Arguments("input dim start length")
_PERMUTE, _SQUEEZE = Arguments("input dims"), Arguments("input dim")
_TRANSPOSE = Arguments("input dim0 dim1")
_UNFLATTEN = Arguments("input dim sizes names")
_CEIL = {"ceil_mode": (False, 0)}
_POOL = "input kernel_size stride padding dilation ceil_mode return_indices"
_MAX = Arguments(_POOL, {}, {"dilation": (1, (1, 1), [1, 1]), **_CEIL})
# Torch's exporter has no word for a divisor, and leaves it out.
_AVERAGE = Arguments(
    "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    {"divisor_override": (None,), **_NO_OUT}, _CEIL,
)  # fmt: skip
_RESIZE = Arguments(
    "input size scale_factor mode align_corners recompute_scale_factor antialias",
    {}, {"mode": ("nearest",)},
)  # fmt: skip
_NORM = Arguments(
    "num_features eps momentum affine track_running_stats bias device dtype"
)  # fmt: skip

ARGUMENTS: dict[Any, Arguments] = {
    nn.Conv2d: Arguments(
        "in_channels out_channels kernel_size stride padding dilation groups bias "
        "padding_mode device dtype"
    ),
    nn.Linear: Arguments("in_features out_features bias device dtype"),
    nn.BatchNorm1d: _NORM, nn.BatchNorm2d: _NORM, nn.BatchNorm3d: _NORM,
    nn.ReLU: Arguments("inplace"), nn.ReLU6: Arguments("inplace"),
    nn.Hardtanh: Arguments("min_val max_val inplace min_value max_value"),
    nn.Dropout: _DROPOUT, nn.Dropout1d: _DROPOUT, nn.Dropout2d: _DROPOUT,
    nn.Dropout3d: _DROPOUT, nn.Identity: Arguments("args kwargs"),
    nn.Flatten: Arguments("start_dim end_dim"),
    nn.Unflatten: Arguments("dim unflattened_size"),
    nn.MaxPool2d: Arguments(_POOL.removeprefix("input "), {}, _MAX.integer),
    nn.ZeroPad2d: Arguments("padding"),
    nn.ConstantPad2d: Arguments("padding value", {}, {"value": (0,)}),
    nn.ChannelShuffle: Arguments("groups"),
    nn.Upsample: Arguments(
        "size scale_factor mode align_corners recompute_scale_factor", {}, _RESIZE.integer
    ),
    nn.UpsamplingNearest2d: Arguments("size scale_factor"),
    nn.AvgPool2d: Arguments(
        _AVERAGE.names.removeprefix("input "), {"divisor_override": (None,)}, _CEIL
    ),
    nn.AdaptiveAvgPool2d: Arguments("output_size"),
    nn.Sigmoid: Arguments("args kwargs"), nn.Hardsigmoid: Arguments("inplace"),
    nn.SiLU: Arguments("inplace"), nn.LeakyReLU: Arguments("negative_slope inplace"),
    nn.Hardswish: Arguments("inplace"),
    _F.relu: _INPLACE, _F.relu_: _INPLACE, torch.relu: _X, torch.relu_: _INPLACE,
    _F.relu6: _INPLACE, _F.hardtanh: _HARDTANH, _F.hardtanh_: _HARDTANH,
    torch.flatten: _RANGE, torch.reshape: Arguments("input shape"),
    torch.permute: _PERMUTE, torch.transpose: _TRANSPOSE, torch.squeeze: _SQUEEZE,
    torch.unsqueeze: _SQUEEZE, torch.unflatten: _UNFLATTEN, torch.narrow: _NARROW,
    torch.chunk: _PARTS, torch.split: Arguments("tensor split_size_or_sections dim"),
    torch.clone: _COPY, torch.channel_shuffle: Arguments("input groups", _NO_OUT),
    _F.channel_shuffle: Arguments("input groups", _NO_OUT),
    _F.dropout: Arguments("input p training inplace"),
    _F.dropout2d: Arguments("input p training inplace"),
    _F.max_pool2d: _MAX, torch.max_pool2d: _MAX,
    _F.pad: Arguments("input pad mode value", {}, {"mode": ("constant",), "value": (None, 0)}),
    _F.interpolate: _RESIZE, _F.upsample: _RESIZE,
    torch.cat: _CAT, torch.concat: _CAT, torch.concatenate: _CAT,
    _F.avg_pool2d: _AVERAGE, _F.adaptive_avg_pool2d: Arguments("input output_size"),
    torch.add: _BOTH, torch.mul: _BOTH, torch.multiply: _BOTH,
    torch.sigmoid: _X, _F.sigmoid: _X, _F.hardsigmoid: _INPLACE,
    _F.silu: _INPLACE, _F.leaky_relu: _SLOPE, _F.leaky_relu_: _SLOPE,
    _F.hardswish: _INPLACE,
    "flatten": _RANGE, "view": Arguments("input size shape", {"dtype": (None,)}),
    "reshape": Arguments("input shape"), "contiguous": _COPY, "permute": _PERMUTE,
    "transpose": _TRANSPOSE, "squeeze": _SQUEEZE, "clone": _COPY, "unsqueeze": _SQUEEZE,
    "unflatten": _UNFLATTEN, "chunk": _PARTS, "split": _SPLIT, "narrow": _NARROW,
    "size": Arguments("input dim"), "dim": Arguments("input"),
}  # fmt: skip


def lost(node: fx.Node, module: nn.Module | None) -> list[str]:
    """Return the arguments of a call that no form of it keeps, such as ``alpha=2``."""
    known = _known(node, module)
    if known is None:
        return []
    given = _given(node, module, known)
    unknown = [f"{name}={value}" for name, value in given.items() if name not in known.all]
    return unknown + _others(given, known.only)


def floating(node: fx.Node, module: nn.Module | None) -> list[str]:
    """Return the arguments with which a call has no integer form: ``ceil_mode=True``."""
    known = _known(node, module)
    if known is None:
        return []
    given = _given(node, module, known)
    return _others(given, known.integer) + _about_padding(given)


def _about_padding(given: dict[str, Any]) -> list[str]:
    """Return paddings that an average leaves out, and those that cut off."""
    leaves_out = given.get("count_include_pad", True) is False
    if leaves_out and given.get("padding", 0) not in (0, (0, 0), [0, 0]):
        return ["count_include_pad=False"]
    pads = given.get("pad", given.get("padding"))
    if isinstance(pads, tuple | list) and any(isinstance(p, int) and p < 0 for p in pads):
        return [f"negative pads {tuple(pads)}"]
    return []


def _known(node: fx.Node, module: nn.Module | None) -> Arguments | None:
    if module is None:
        return ARGUMENTS.get(node.target)
    return next((ARGUMENTS[kind] for kind in type(module).__mro__ if kind in ARGUMENTS), None)


def _given(node: fx.Node, module: nn.Module | None, known: Arguments) -> dict[str, Any]:
    """Return the arguments of a call, or of the module that is called, by name."""
    if module is not None:
        return {name: getattr(module, name) for name in known.all if hasattr(module, name)}
    # Sizes may be given one by one, as in ``x.view(n, c)``.
    given = dict(zip(known.names.split(), node.args, strict=False))
    return given | {_usual(name): value for name, value in node.kwargs.items()}


def _usual(name: str) -> str:
    return "input" if name == "self" else name


def _others(given: dict[str, Any], accepted: dict[str, tuple[Any, ...]]) -> list[str]:
    return [
        f"{name}={value}"
        for name, value in given.items()
        if name in accepted and not any(value == usual for usual in accepted[name])
    ]


def installed(operator: Any) -> set[str]:
    """Return the arguments that `operator` has in the torch that is installed.

    Args:
        operator: a key of `ARGUMENTS`.
    """
    if isinstance(operator, type):
        return set(inspect.signature(operator.__init__).parameters) - {"self"}  # type: ignore[misc]
    try:
        names = set(inspect.signature(operator).parameters)
    except (TypeError, ValueError):  # a method's name, or a builtin
        names = set()
    if not names or names == {"args", "kwargs"}:
        names = _schema_arguments(operator)
    return {_usual(name) for name in names}


def _schema_arguments(operator: Any) -> set[str]:
    """Return the arguments that all overloads of an aten operator have on tensors."""
    name = operator if isinstance(operator, str) else operator.__name__
    packet = getattr(torch.ops.aten, name)
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    tensors = [s for s in schemas if s.arguments and "Tensor" in str(s.arguments[0].type)]
    return {argument.name for schema in tensors for argument in schema.arguments}
