"""`torch.export.ExportedProgram` -> graph of the functional calls it came from.

``aten.conv2d.default(x, p_stem_weight, None, [2, 2])`` ->
``functional.conv2d(x, stem.weight, None, [2, 2])``. An aten operator that the table lacks is
called as it is. Checks that torch.export inserts are dropped.
Refuses a program that contains another program. Nothing in it writes in place any more.
"""

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn import functional

from qtool.core.errors import UnsupportedError
from qtool.nn.capture.place import ORIGIN

_F = functional
# aten operator: the function, and which of the operator's arguments it takes, in order.
_CALLS: dict[str, tuple[Callable[..., Any], str]] = {
    "conv2d": (_F.conv2d, "input weight bias stride padding dilation groups"),
    "linear": (_F.linear, "input weight bias"),
    "batch_norm": (
        _F.batch_norm, "input running_mean running_var weight bias training momentum eps",
    ),
    "relu": (_F.relu, "self"), "relu6": (_F.relu6, "self"),
    "hardtanh": (_F.hardtanh, "self min_val max_val"), "clamp": (torch.clamp, "self min max"),
    "hardswish": (_F.hardswish, "self"), "hardsigmoid": (_F.hardsigmoid, "self"),
    "sigmoid": (torch.sigmoid, "self"), "silu": (_F.silu, "self"),
    "leaky_relu": (_F.leaky_relu, "self negative_slope"),
    "add": (operator.add, "self other"), "mul": (operator.mul, "self other"),
    "div": (operator.truediv, "self other"), "sub": (operator.sub, "self other"),
    "cat": (torch.cat, "tensors dim"), "mean": (torch.mean, "self dim keepdim"),
    "max_pool2d": (_F.max_pool2d, "self kernel_size stride padding dilation ceil_mode"),
    "avg_pool2d": (
        _F.avg_pool2d,
        "self kernel_size stride padding ceil_mode count_include_pad divisor_override",
    ),
    "adaptive_avg_pool2d": (_F.adaptive_avg_pool2d, "self output_size"),
    "dropout": (_F.dropout, "input p train"),
    "feature_dropout": (_F.dropout2d, "input p train"),
    "pad": (_F.pad, "self pad mode value"),
    "view": (torch.reshape, "self size"), "reshape": (torch.reshape, "self shape"),
    "flatten": (torch.flatten, "self start_dim end_dim"),
    "permute": (torch.permute, "self dims"), "transpose": (torch.transpose, "self dim0 dim1"),
    "squeeze": (torch.squeeze, "self dim"), "unsqueeze": (torch.unsqueeze, "self dim"),
    "chunk": (torch.chunk, "self chunks dim"), "split": (torch.split, "self split_size dim"),
    "split_with_sizes": (torch.split, "self split_sizes dim"),
    "channel_shuffle": (torch.channel_shuffle, "self groups"),
    "upsample_nearest2d": (_F.interpolate, "input output_size scale_factors"),
    "expand": (torch.broadcast_to, "self size"), "softmax": (torch.softmax, "self dim"),
}  # fmt: skip
# Arguments that change no value.
NEUTRAL = ("cudnn_enabled", "implicit", "layout", "device", "pin_memory", "memory_format")
_SAME = ("contiguous", "clone", "alias", "detach", "detach_", "lift_fresh_copy")


def calls_of(program: ExportedProgram, model: nn.Module) -> fx.GraphModule:
    """Return `program` as functional calls on the parameters and buffers of `model`.

    Raises:
        UnsupportedError: names what cannot be called again.
    """
    return _Converter(program, model).run()


class _Converter:
    def __init__(self, program: ExportedProgram, model: nn.Module) -> None:
        self.program, self.model = program, model
        self.root, self.graph = nn.Module(), fx.Graph()
        self.new: dict[fx.Node, Any] = {}

    def run(self) -> fx.GraphModule:
        for node in self.program.graph_module.graph.nodes:
            self._convert(node)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, self._model_name())

    def _model_name(self) -> str:
        return type(self.model).__name__

    def _convert(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.new[node] = self._input(node)
        elif node.op == "output":
            found = [self.new[result] for result in node.all_input_nodes]
            self.graph.output(found[0] if len(found) == 1 else tuple(found))
        elif node.op == "get_attr" or isinstance(node.target, torch._ops.HigherOrderOperator):
            raise UnsupportedError(
                f"model {self._model_name()}: {node.target} has no calls to put quantizers on"
            )
        elif "assert" not in str(node.target):
            made = self.new[node] = self._call(node)
            if isinstance(made, fx.Node):
                made.meta.setdefault(ORIGIN, _origin(node))

    def _input(self, node: fx.Node) -> fx.Node:
        signature = self.program.graph_signature
        name = signature.inputs_to_parameters.get(node.name)
        value: Tensor | None = None
        if name is not None:
            value = self.model.get_parameter(name)
        elif (name := signature.inputs_to_buffers.get(node.name)) is not None:
            value = self.model.get_buffer(name)
        elif (name := signature.inputs_to_lifted_tensor_constants.get(node.name)) is not None:
            value = self.program.constants[name]
        if name is None or value is None:
            return self.graph.placeholder(node.name)
        _place(self.root, name, value)
        return self.graph.create_node("get_attr", name, name=node.name)

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.new.__getitem__)
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            name = target.overloadpacket.__name__
            given = _named(target, args, kwargs)
            if name in _SAME:
                return given["self"]
            target, args, kwargs = _functional(name, target, given) or (target, args, kwargs)
            if target == "size":
                return self.graph.create_node("call_method", target, args, name=node.name)
        return self.graph.create_node("call_function", target, args, kwargs, name=node.name)


def _origin(node: fx.Node) -> str:
    """Return the path of the module that computes `node`, "" for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values() if path]
    return paths[-1] if paths else ""


def _functional(name: str, op: Any, given: dict[str, Any]) -> tuple[Any, Any, Any] | None:
    """Return (function, args, kwargs) for an aten operator, None if there is no better one."""
    if name == "sym_size":
        return "size", (given["self"], given["dim"]), {}
    if name == "slice":
        cut = slice(given["start"], given["end"], given["step"])
        index = (slice(None),) * given["dim"]
        return operator.getitem, (given["self"], (*index, cut)), {}
    if name == "constant_pad_nd":
        return functional.pad, (given["self"], given["pad"], "constant", given["value"]), {}
    known = _CALLS.get(name)
    if known is None:
        return None
    function, names = known
    wanted = names.split()
    if set(wanted) - set(given):  # an overload of another meaning
        return None
    if any(given[name] != usual for name, usual in _dropped(op, wanted).items()):
        return None
    return function, tuple(given[argument] for argument in wanted), {}


def _dropped(op: Any, wanted: Collection[str]) -> dict[str, Any]:
    """Return the arguments of `op` that its function lacks, with the values it may do without.

    What has no default is never left out.
    """
    return {
        a.name: a.default_value if a.has_default_value() else ...
        for a in op._schema.arguments
        if a.name not in (*wanted, *NEUTRAL)
    }


def _named(op: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return every argument of a call of `op` by its name in the operator's schema."""
    schema = op._schema.arguments
    values = {a.name: a.default_value for a in schema if a.has_default_value()}
    values |= {a.name: value for a, value in zip(schema, args, strict=False)}
    return values | dict(kwargs)


def _place(root: nn.Module, name: str, value: Tensor) -> None:
    """Register `value` in `root` under its dotted `name`."""
    *path, last = name.split(".")
    for part in path:
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value)
