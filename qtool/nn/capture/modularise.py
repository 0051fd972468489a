"""``functional.conv2d(x, stem.weight, stem.bias)`` -> ``stem(x)``, a `nn.Conv2d`.

Convolution, linear and BatchNorm calls on parameters become modules under the parameters' own
prefix, so that state dicts keep their keys. A weight that is called something else than
"weight" becomes a module of its name: ``w`` -> ``w.weight``. Dropout calls become modules too,
so that they follow the mode of the model.
A computed weight has no parameter: such a call stays as it is.
"""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from qtool.core.errors import UnsupportedError
from qtool.models.normalised import ConstantNorm
from qtool.nn.capture.operators import argument
from qtool.nn.capture.place import fresh

L = TypeVar("L", nn.Conv2d, nn.Linear)
_CONVOLUTIONS = (functional.conv2d, torch.conv2d)
_NORMS: tuple[type[nn.modules.batchnorm._BatchNorm], ...] = (
    ConstantNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip
_DROPOUTS: dict[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout2d: nn.Dropout2d,
}


def modularise(gm: fx.GraphModule, model: nn.Module) -> None:
    """Rewrite `gm`, which was traced from `model`, in place."""
    for node in list(gm.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _CONVOLUTIONS:
            _layer(gm, node, _conv(gm, node))
        elif node.target is functional.linear:
            _layer(gm, node, _linear(gm, node))
        elif node.target is functional.batch_norm:
            _norm(gm, node, model)
        elif node.target in _DROPOUTS:
            _dropout(gm, node)
    for node in reversed(gm.graph.nodes):
        if node.op == "get_attr" and not node.users:
            gm.graph.erase_node(node)
            _drop(gm, str(node.target))
    gm.recompile()


def _drop(gm: fx.GraphModule, name: str) -> None:
    """Remove what only the layers that were made of it hold now; it would be saved twice."""
    path, _, last = name.rpartition(".")
    owner = gm.get_submodule(path)
    is_ours = owner is gm or type(owner) is nn.Module  # other owners are the user's
    if is_ours and not any(node.target == name for node in gm.graph.nodes):
        owner._parameters.pop(last, None)


def _parameter(gm: fx.GraphModule, node: Any) -> Tensor | None:
    """Return the tensor that `node` reads from the model, None for anything computed."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    found = getattr(gm.get_submodule(owner), name)
    if isinstance(found, nn.Conv2d | nn.Linear):  # a call before made it of this weight
        found = found.weight
    return found if isinstance(found, Tensor) else None


def _own(tensor: Tensor | None) -> Any:
    if tensor is None or isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=False)


def _conv(gm: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    weight = _parameter(gm, argument(node, 1, "weight"))
    if weight is None or _has_computed_bias(gm, node):
        return None
    groups = argument(node, 6, "groups", 1)
    stride, padding = argument(node, 3, "stride", 1), argument(node, 4, "padding", 0)
    conv = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], cast(Any, tuple(weight.shape[2:])),
        _pair(stride), padding if isinstance(padding, str) else _pair(padding),
        _pair(argument(node, 5, "dilation", 1)), groups, bias=False, device="meta",
    )  # fmt: skip
    return _filled(conv, weight, _parameter(gm, argument(node, 2, "bias")))


def _linear(gm: fx.GraphModule, node: fx.Node) -> nn.Linear | None:
    weight = _parameter(gm, argument(node, 1, "weight"))
    if weight is None or _has_computed_bias(gm, node):
        return None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    return _filled(linear, weight, _parameter(gm, argument(node, 2, "bias")))


def _has_computed_bias(gm: fx.GraphModule, node: fx.Node) -> bool:
    bias = argument(node, 2, "bias")
    return bias is not None and _parameter(gm, bias) is None


def _pair(value: Any) -> Any:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    return pair * 2 if len(pair) == 1 else pair


def _filled(layer: L, weight: Tensor, bias: Tensor | None) -> L:
    layer.weight = cast(nn.Parameter, _own(weight))
    layer.bias = cast(nn.Parameter, _own(bias))
    return layer


def _layer(gm: fx.GraphModule, node: fx.Node, layer: nn.Conv2d | nn.Linear | None) -> None:
    if layer is not None:
        _install(gm, node, argument(node, 1, "weight"), "weight", layer)


def _norm(gm: fx.GraphModule, node: fx.Node, model: nn.Module) -> None:
    if argument(node, 5, "training", False):
        raise UnsupportedError(
            f"{node.name}: batch_norm takes statistics of the batch in evaluation too "
            "(training=True); the device has no batch"
        )
    mean, var = argument(node, 1, "running_mean"), argument(node, 2, "running_var")
    weight, bias = argument(node, 3, "weight"), argument(node, 4, "bias")
    tensors = [_parameter(gm, part) for part in (mean, var, weight, bias)]
    computed = any(
        part is not None and tensor is None
        for part, tensor in zip((mean, var, weight, bias), tensors, strict=True)
    )
    if tensors[0] is None or tensors[1] is None or computed:
        return
    prefix = str(mean.target).rpartition(".")[0]
    original = model.get_submodule(prefix)
    kind = next((k for k in _NORMS if isinstance(original, k)), nn.BatchNorm2d)
    norm: nn.modules.batchnorm._BatchNorm = kind(
        len(tensors[0]), argument(node, 7, "eps", 1e-5), argument(node, 6, "momentum", 0.1),
        affine=not (weight is None and bias is None), device="meta",
    )  # fmt: skip
    if norm.affine:
        norm.weight = _own(torch.ones_like(tensors[0]) if weight is None else tensors[2])
        norm.bias = _own(torch.zeros_like(tensors[0]) if bias is None else tensors[3])
    norm.running_mean, norm.running_var = tensors[0], tensors[1]
    batches = getattr(original, "num_batches_tracked", None)
    norm.num_batches_tracked = torch.tensor(0) if batches is None else batches
    _install(gm, node, mean, "running_mean", norm)


def _dropout(gm: fx.GraphModule, node: fx.Node) -> None:
    name = fresh(gm, f"{node.name}_module")
    gm.add_submodule(name, _DROPOUTS[node.target](float(argument(node, 1, "p", 0.5))))
    _call(node, name)


def _call(node: fx.Node, name: str) -> None:
    """Let `node` call the module `name` on its first argument."""
    node.args, node.kwargs = (argument(node, 0, "input"),), {}
    node.op, node.target = "call_module", name


def _install(
    gm: fx.GraphModule, node: fx.Node, source: fx.Node, usual: str, module: nn.Module
) -> None:
    """Let `node` call `module`, placed where its tensor `source` is."""
    name = str(source.target)
    prefix, _, last = name.rpartition(".")
    if last == usual and prefix:
        name = prefix
        _replace(gm, name, module)
    else:
        owner = gm.get_submodule(prefix)
        if last in owner._parameters or last in owner._buffers:
            delattr(owner, last)
        owner.add_module(last, module)
    _call(node, name)


def _replace(gm: fx.GraphModule, name: str, module: nn.Module) -> None:
    """Put `module` at `name`; what else lives there comes along."""
    old = gm.get_submodule(name)
    if type(old) is type(module):  # called before: prepare() refuses that, by name
        return
    for key, child in old.named_children():
        module.add_module(key, child)
    for key, parameter in old.named_parameters(recurse=False):
        if key not in module._parameters:
            module.register_parameter(key, parameter)
    gm.set_submodule(name, module)
