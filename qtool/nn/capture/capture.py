"""``nn.Module`` -> `torch.fx` graph of module calls and functional calls, whatever it takes.

1. torch.fx's symbolic trace; modules of torch.nn stay calls.
2. Where that fails (control flow on sizes, several arguments with defaults, ...):
   torch.export, whose operators become calls again (`qtool.nn.capture.exported`).
3. Nothing works in place any more (`qtool.nn.capture.in_place`).
4. Functional layers on parameters become modules (`qtool.nn.capture.modularise`).
5. Layers that nobody reads are left out (`qtool.nn.capture.unread`).
Computed weights are stored and shared ones copied first (`qtool.models.owned`).
The model is traced in evaluation mode, and its parts keep their own modes: what differs in
training (BatchNorm, Dropout) stays a module call, so that the result can do both.
"""

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

import torch
from torch import fx, nn

from qtool.core.errors import UnsupportedError
from qtool.models.owned import owned
from qtool.nn.capture.by_position import by_position
from qtool.nn.capture.compare import evaluating
from qtool.nn.capture.exported import calls_of
from qtool.nn.capture.in_place import IN_PLACE, out_of_place
from qtool.nn.capture.modularise import modularise
from qtool.nn.capture.place import require_free_names
from qtool.nn.capture.tracer import Tracer
from qtool.nn.capture.unread import drop_unread

_MADE = "_tensor_constant"
_ASSIGNS = (
    "it writes to a part of a tensor in place, y[...] = ...; put the parts together with "
    "torch.cat instead"
)


def capture(model: nn.Module, input_shape: Sequence[int] | None = None) -> fx.GraphModule:
    """Return `model` as a graph that shares its parameters, under their names.

    Args:
        model: any module that torch.fx or torch.export accepts.
        input_shape: (C, H, W) of an image; without it only torch.fx is tried.

    Raises:
        UnsupportedError: neither accepts the model; one line with the reason.
    """
    with evaluating(model):
        require_free_names(model)
        plain = owned(model)
        try:
            graph_module = _symbolic(plain)
        except Exception as error:  # torch.fx raises many types, all about forward()
            if input_shape is None:
                raise UnsupportedError(
                    f"model {_name(model)} cannot be traced: {_reason(error)}; pass "
                    "input_shape, so that torch.export can try"
                ) from error
            graph_module = _export(plain, input_shape, _reason(error))
        else:
            by_position(graph_module)
            places = out_of_place(graph_module, _stored(graph_module), _name(model))
            graph_module.meta[IN_PLACE] = places
        modularise(graph_module, plain)
        drop_unread(graph_module)
    originals = dict(model.named_modules())
    for name, module in graph_module.named_modules():
        module.training = originals.get(name, model).training
    return graph_module


def _symbolic(model: nn.Module) -> fx.GraphModule:
    tracer = Tracer()
    graph = tracer.trace(model)
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise UnsupportedError(f"forward() takes {', '.join(inputs) or 'no input'}")
    return fx.GraphModule(tracer.root, graph, _name(model))


def _stored(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the nodes that read parameters and buffers, and their names."""
    reads = {node: str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    # Tensors that forward() makes anew each time are constants of the graph.
    return {node: name for node, name in reads.items() if not name.startswith(_MADE)}


def _export(model: nn.Module, input_shape: Sequence[int], why: str) -> fx.GraphModule:
    """Return `model`, for which torch.fx raised `why`, as torch.export sees it."""
    try:
        with _quiet(), torch.no_grad():  # gradients forbid some writes to views
            program = torch.export.export(
                model,
                (torch.zeros(2, *input_shape),),
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
    except Exception as error:  # as many types as above
        raise UnsupportedError(
            f"model {_name(model)} cannot be traced by torch.export: {_reason(error)}"
            + ("; " + _ASSIGNS if "item assignment" in why else "")
        ) from error
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = program.graph_module.graph.nodes
    stored = {node: names[node.name] for node in nodes if node.name in names}
    places = out_of_place(program.graph_module, stored, _name(model))
    graph_module = calls_of(program, model)
    graph_module.meta[IN_PLACE] = places
    return graph_module


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch.export refuses is told in one line, without its graphs and loggers."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
