"""The beginning of a network that is the same at every candidate, computed once a batch.

Training on several bit-widths passes the same images through the same first layer (its bits
are fixed) each time. Here the network is cut in front of the first quantizers that have
several candidates; what lies before is computed once, its gradient is the sum over the passes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.nn.modules.batchnorm import _BatchNorm

from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.modules.switch_norm import Switch

_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class SharedPrefix:
    """Runs a prepared network in two parts.

    Args:
        model: result of `qtool.nn.prepare.prepare.prepare`; its modules are used, not copied.
        float_tensors: as of `qtool.nn.control.select`: what is selected may turn any
            quantizer off but those that keep their bits.
    """

    def __init__(self, model: nn.Module, float_tensors: bool = False) -> None:
        if not isinstance(model, fx.GraphModule):
            raise TypeError(f"got a {type(model).__name__}, expected a prepared network")
        fixed = _fixed_nodes(model, float_tensors)
        split = split_module(model, model, lambda node: int(node not in fixed))
        self._parts = [part for _, part in sorted(split.named_children())]
        whole = all(node in fixed for node in model.graph.nodes if node.op == "call_module")
        self.is_empty = len(self._parts) < 2 or whole
        self._model = model

    def norms(self) -> list[nn.Module]:
        """Return the BatchNorms of the shared part."""
        if self.is_empty:
            return []
        return [m for m in self._parts[0].modules() if isinstance(m, _BatchNorm)]

    @contextmanager
    def passes(self, x: Tensor) -> Iterator[Callable[[], Tensor]]:
        """Yield a function that runs the network on `x` at the bits selected then.

        Each result's backward must be done inside the block; that of the shared part is done
        at its end.
        """
        if self.is_empty:
            yield lambda: self._model(x)
            return
        first, rest = self._parts
        tensors: list[Tensor] = []
        leaves: list[Tensor] = []

        def run() -> Tensor:
            if not tensors:  # only now quantizers are on
                made = first(x)
                tensors.extend(made if isinstance(made, tuple) else (made,))
                leaves.extend(t.detach().requires_grad_(t.requires_grad) for t in tensors)
            result: Tensor = rest(*leaves)
            return result

        yield run
        used = [i for i, leaf in enumerate(leaves) if leaf.grad is not None]
        if used:
            torch.autograd.backward([tensors[i] for i in used], [leaves[i].grad for i in used])


def _fixed_nodes(model: fx.GraphModule, float_tensors: bool) -> set[fx.Node]:
    """Return the nodes whose results do not depend on which candidates are selected."""
    fixed: set[fx.Node] = set()
    for node in model.graph.nodes:
        if all(source in fixed for source in node.all_input_nodes) and not _varies(
            model, node, float_tensors
        ):
            fixed.add(node)
    return fixed


def _varies(model: fx.GraphModule, node: fx.Node, float_tensors: bool) -> bool:
    if node.op != "call_module":
        return False
    modules = list(model.get_submodule(str(node.target)).modules())
    several = any(isinstance(m, Quantizer) and len(m.bits) > 1 for m in modules)
    off = float_tensors and any(isinstance(m, Quantizer) and not m.keeps_bits for m in modules)
    return several or off or any(isinstance(m, (*_RANDOM, Switch)) for m in modules)
