"""The inner loop of MAML (Finn et al., arXiv 1703.03400): fine-tuning on a support set.

Weights, biases and the quantizers' learned parameters take steps of plain SGD; BatchNorm's
gamma and beta stay, and it normalises each batch with that batch's statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from qtool.nn.norm_rows import active_norms
from qtool.quantizers.normalised import pass_through
from qtool.training.evaluation import fresh_statistics

Values = dict[str, Tensor]


def inner_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what the inner loop adapts, by name."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    outside = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in outside
    }


@torch.enable_grad()
def fine_tuned(model: nn.Module, x: Tensor, labels: Tensor, steps: int, lr: float) -> Values:
    """Return the adapted values of `inner_parameters`; `model` keeps its own.

    Args:
        model: in training mode, at the bits that are selected.
        x: support images (N, C, H, W).
        labels: (N,).
        steps: of SGD, on all of them.
        lr: learning rate.
    """
    values = {n: p.detach().clone() for n, p in inner_parameters(model).items()}
    for _ in range(steps):
        leaves = {name: value.requires_grad_() for name, value in values.items()}
        logits = functional_call(model, leaves, (x,))
        loss = functional.cross_entropy(logits.float(), labels)
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        # In place: a new tensor of one input channel would forget that channels are last.
        values = {name: leaf.detach() for name, leaf in leaves.items()}
        for value, grad in zip(values.values(), grads, strict=True):
            if grad is not None:
                value.sub_(grad, alpha=lr)
    return values


def first_order(model: nn.Module, x: Tensor, values: Values) -> Tensor:
    """Return the logits of `x` at `values`, whose gradient is that of `model`'s parameters.

    The derivative of a value by its parameter counts as 1: the first-order gradient, without
    second derivatives through the inner loop.

    Args:
        model: in training mode.
        x: query images (N, C, H, W).
        values: result of `fine_tuned`.
    """
    own = dict(model.named_parameters())
    moved = {name: pass_through(own[name], value) for name, value in values.items()}
    logits: Tensor = functional_call(model, moved, (x,))
    return logits


@torch.no_grad()
def settle_on(model: nn.Module, x: Tensor, values: Values) -> None:
    """Make `model` the deployed network: `values`, and BatchNorm statistics of images `x`."""
    for name, parameter in model.named_parameters():
        if name in values:
            parameter.copy_(values[name])
    model.train()
    with fresh_statistics(active_norms(model)):
        model(x)
    model.eval()


@contextmanager
def kept_state(model: nn.Module) -> Iterator[None]:
    """Within this context, parameters and buffers may change; then they are as before."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(before)
