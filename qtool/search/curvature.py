"""How much the loss curves in each layer's weight and input: HAWQ-V2's sensitivity.

Dong et al. 2020, arXiv 1911.03852. The trace of the loss's Hessian with respect to a tensor is
E[v' H v] over Rademacher v (Hutchinson; its section 3.2), and v' H v comes from a double
backward pass, without H. Weights: its equation 4; activations: its section 3.4, where H is
block-diagonal over images because images do not meet in a network in evaluation mode.

Deviation: one double backward serves all tensors, each with its own v. What tensor k then adds
to j's estimate, v_j' H_jk v_k, has zero mean as v_j and v_k are independent; it costs variance
and saves a pass for every tensor. Where traces differ by orders of magnitude that variance
would hide the small ones: ||H_jk||_F^2 is up to Tr(H_jj) Tr(H_kk). So v_j is Rademacher times
c_j = 1 / ||g_j||, with g_j the gradient, and the estimate v_j' (H v)_j / c_j^2, which is as
unbiased: Tr(H_jj) goes roughly with ||g_j||^2 (Fisher), and all relative errors become alike.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from qtool.core.errors import UnsupportedError
from qtool.data.batches import Batch
from qtool.data.clips import clip_logits
from qtool.search.undisturbed import undisturbed
from qtool.training.evaluation import device_of


@dataclass(frozen=True)
class Traces:
    """Hessian traces of one layer, sums over the diagonal; the loss is label cross-entropy.

    Args:
        weight: of the mean loss over the images, with respect to the layer's weight.
        activation: of an image's loss with respect to the layer's input for that image (a
            clip's: for all its frames), mean over the images.
        weight_error: standard error of `weight` that the probes leave, from their spread; nan
            with one probe. Other images would give another trace: that is not in it.
        activation_error: likewise.
    """

    weight: float
    activation: float
    weight_error: float = math.nan
    activation_error: float = math.nan


class LayerTraces(dict[str, Traces]):
    """Traces by layer, and what they cost.

    Args:
        traces: by layer.
        images_seen: images times probes: how often an image went through a double backward
            pass, which costs several training steps of that image. Each batch's one forward
            and first backward pass come on top.
    """

    def __init__(self, traces: Mapping[str, Traces], images_seen: int) -> None:
        super().__init__(traces)
        self.images_seen = images_seen


@dataclass(frozen=True)
class Surface:
    """The loss of one batch as a function of the layers' weights and inputs.

    Args:
        variables: weights (as the layers') first, then inputs (N, ...), both in the order of
            the layers.
        gradients: of the mean loss, one per variable, with their own graph.
    """

    variables: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    def quadratic_forms(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return v_j' (H v)_j for every variable j, (variables,) float64.

        Args:
            vectors: v, one per variable and shaped as it.
        """
        along = torch.stack(
            [(g * v).sum() for g, v in zip(self.gradients, vectors, strict=True)]
        ).sum()
        products = torch.autograd.grad(
            along, self.variables, retain_graph=True, materialize_grads=True
        )
        pairs = zip(vectors, products, strict=True)
        return torch.stack([(v * p).sum(dtype=torch.float64) for v, p in pairs])

    def scales(self) -> Tensor:
        """Return c, (variables,) float64: how large a probe of each variable is."""
        norms = torch.stack([g.detach().norm(dtype=torch.float64) for g in self.gradients])
        largest = norms.max()
        # Far below the largest one, a gradient says nothing (0: behind a dead ReLU).
        return 1 / norms.clamp_min(1e-6 * torch.where(largest > 0, largest, 1e6))

    def probe(self, generator: torch.Generator) -> Tensor:
        """Return an unbiased estimate of every variable's trace, (variables,) float64."""
        scales = self.scales()
        vectors = [
            _rademacher(v, generator).mul_(c)
            for v, c in zip(self.variables, scales, strict=True)
        ]
        return self.quadratic_forms(vectors) / scales.square()


def layer_traces(
    model: nn.Module, layers: Sequence[str], batches: Iterable[Batch], probes: int, seed: int
) -> LayerTraces:
    """Estimate the Hessian traces of `layers`; leaves the model as it is.

    Args:
        model: float network.
        layers: names of its convolution and linear modules (`qtool.search.space` uses the
            same names).
        batches: (x, labels) as of `qtool.data.batches`; each is in memory as a whole, with
            all its layers' inputs and their gradients.
        probes: Rademacher vectors for each batch; the estimate's variance falls as
            1 / (probes * batches).
        seed: of the vectors. The same seed gives the same traces on the same kind of device.

    Raises:
        UnsupportedError: a layer is not a module of `model`.
        ValueError: no batch, or no probe.
    """
    device, images = device_of(model), 0
    generator = torch.Generator(device).manual_seed(seed)
    # Sums over batches of the estimate times images, and of its variance times their square.
    total, variance = torch.zeros(2, 2 * len(layers), dtype=torch.float64, device=device)
    with undisturbed(model):
        for x, labels in batches:
            found = surface(model, layers, x.to(device), labels.to(device))
            forms = torch.stack([found.probe(generator) for _ in range(probes)])
            total += len(labels) * forms.mean(0)
            variance += len(labels) ** 2 * _variance_of_mean(forms)
            images += len(labels)
    if not images:
        raise ValueError("no images to estimate Hessian traces from")
    rows = torch.stack([total, variance.sqrt()]).reshape(4, len(layers)) / images
    traces = {name: Traces(*row) for name, row in zip(layers, rows.T.tolist(), strict=True)}
    return LayerTraces(traces, images * probes)


def _variance_of_mean(forms: Tensor) -> Tensor:
    """Return the variance of the mean over rows (probes, variables), nan for one row."""
    if len(forms) < 2:
        return torch.full_like(forms[0], math.nan)
    return forms.var(0) / len(forms)


def surface(model: nn.Module, layers: Sequence[str], x: Tensor, labels: Tensor) -> Surface:
    """Return the batch's mean cross-entropy around the present weights and inputs.

    Args:
        model: float network in evaluation mode.
        layers: names of modules.
        x: (N, C, H, W).
        labels: (N,), or fewer for clips.
    """
    modules = {name: _layer(model, name) for name in layers}
    # Everything but the layers' weights is a constant: its gradient would cost a pass.
    state = {name: value.detach() for name, value in model.named_parameters()}
    for name in layers:
        state[f"{name}.weight"].requires_grad_()
    with torch.enable_grad(), _inputs_of(modules) as inputs:
        logits: Tensor = functional_call(model, state, (x,))
        loss = functional.cross_entropy(clip_logits(logits, len(labels)), labels)
        weights = [state[f"{name}.weight"] for name in layers]
        variables = (*weights, *(inputs[name] for name in layers))
        gradients = torch.autograd.grad(
            loss, variables, create_graph=True, materialize_grads=True
        )
    return Surface(variables, gradients)


def _layer(model: nn.Module, name: str) -> nn.Module:
    module: nn.Module | None = dict(model.named_modules()).get(name)
    if module is not None and isinstance(getattr(module, "weight", None), nn.Parameter):
        return module
    raise UnsupportedError(
        f"layer {name}: the network has no module of that name with a weight, as it calls a "
        "function there; a search by Hessian needs modules (nn.Conv2d, nn.Linear)"
    )


@contextmanager
def _inputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Within this context, collect what the modules read, as variables of their own.

    A copy, because only this layer's input is quantized: not what else reads the same tensor,
    such as a skip connection.
    """
    inputs: dict[str, Tensor] = {}

    def hook_of(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0].clone()
            inputs[name] = x if x.requires_grad else x.requires_grad_()
            return (x, *args[1:])

        return hook

    handles = [m.register_forward_pre_hook(hook_of(name)) for name, m in modules.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return -1 and 1 with equal probability, shaped and placed like `like`."""
    coins = torch.empty_like(like, requires_grad=False)
    return coins.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
