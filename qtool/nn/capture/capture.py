"""``nn.Module`` -> `torch.fx` graph of module calls and functional calls, whatever it takes.

1. torch.fx's symbolic trace; modules of torch.nn stay calls.
2. Where that fails (control flow on sizes, several arguments with defaults, ...):
   torch.export, whose operators become calls again (`qtool.nn.capture.exported`).
3. Functional layers on parameters become modules (`qtool.nn.capture.modularise`), and layers
   that nobody reads are left out (`qtool.nn.capture.unread`).
Computed weights are stored and shared ones copied first (`qtool.models.owned`).
The model is traced in evaluation mode, and its parts keep their own modes: what differs in
training (BatchNorm, Dropout) stays a module call, so that the result can do both.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr

import torch
from torch import fx, nn

from qtool.core.errors import UnsupportedError
from qtool.models.owned import owned
from qtool.nn.capture.compare import evaluating
from qtool.nn.capture.exported import calls_of
from qtool.nn.capture.modularise import modularise
from qtool.nn.capture.operators import IDENTITY_IN_EVALUATION, is_plain
from qtool.nn.capture.place import require_free_names
from qtool.nn.capture.unread import drop_unread


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
            graph_module = _export(plain, input_shape)
        modularise(graph_module, plain)
        drop_unread(graph_module)
    originals = dict(model.named_modules())
    for name, module in graph_module.named_modules():
        module.training = originals.get(name, model).training
    return graph_module


class _Tracer(fx.Tracer):
    """Keeps every module whose training differs, or that is a layer, in one piece."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True for modules that become one call."""
        if type(m).__name__ in IDENTITY_IN_EVALUATION or is_plain(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _symbolic(model: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    graph = tracer.trace(model)
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise UnsupportedError(f"forward() takes {', '.join(inputs) or 'no input'}")
    return fx.GraphModule(tracer.root, graph, _name(model))


def _export(model: nn.Module, input_shape: Sequence[int]) -> fx.GraphModule:
    try:
        with redirect_stderr(io.StringIO()):  # torch.export prints graphs of what it refuses
            program = torch.export.export(
                model,
                (torch.zeros(2, *input_shape),),
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
    except Exception as error:  # as many types as above
        raise UnsupportedError(
            f"model {_name(model)} cannot be traced by torch.export: {_reason(error)}"
        ) from error
    return calls_of(program, model)


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
