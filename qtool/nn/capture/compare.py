"""Is a captured, or a prepared, network the user's own? On a few images, layer by layer.

    error(layer) = max |captured - own| / max |own|

Both are in evaluation and in floating point (quantizers off). They differ by roundings where
operators were respelled; an option that was dropped, or a hook that is not in the graph, shows
as far more. Compared are the convolutions, linear layers and norms that both have under the
same path, in the order they run; then the output. A layer that took in its BatchNorm is
compared behind it.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qtool.nn.capture.operators import is_plain
from qtool.nn.modules.affine import QuantAffine
from qtool.nn.modules.quant_layer import QuantLayer

# Float roundings of deep networks stay below it by a factor of ten and more.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Difference:
    """Where two networks differ first.

    Args:
        layer: path in the user's network; "" for the output.
        error: largest difference over the largest magnitude; NaN where only one is NaN.
    """

    layer: str
    error: float

    def __str__(self) -> str:
        where = f"layer {self.layer}" if self.layer else "the output"
        return f"{where} differs from the network's own by {self.error:.2g} of its range"


def sample_images(shape: Sequence[int], count: int = 2) -> Tensor:
    """Return `count` seeded images (count, *shape) of random pixels in [0, 1)."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def compare(model: nn.Module, captured: nn.Module, x: Tensor) -> Difference | None:
    """Return where `captured` first computes something else than `model`, None if nowhere.

    Args:
        model: the user's network.
        captured: result of `capture` or `prepare`, whose quantizers are off.
        x: images (N, C, H, W).
    """
    places = _places(model, captured)
    with evaluating(model), evaluating(captured), torch.no_grad():
        own = _outputs(model, places.keys(), x.clone())  # it may write to its images
        found = _outputs(captured, places.values(), x)
    for path in own:
        other = found.get(places.get(path, ""))
        if other is None:
            continue
        if other.shape == own[path].shape:
            error = relative_error(other, own[path])
        else:
            error = math.inf
        if not error <= TOLERANCE:
            return Difference(path, error)
    return None


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest magnitude of `wanted`."""
    if found.equal(wanted):
        return 0.0
    largest = wanted.abs().max().item()
    return (found - wanted).abs().max().item() / (largest or 1.0)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this context, `model` is in evaluation; then every part has its mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _places(model: nn.Module, captured: nn.Module) -> dict[str, str]:
    """Return, by path in `model`, the path in `captured` of what computes the same."""
    others = dict(captured.named_modules())
    plain = {p: m for p, m in model.named_modules() if is_plain(m)}
    statistics = [
        (id(module.running_mean), path)
        for path, module in plain.items()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    shared = Counter(key for key, _ in statistics)
    # Of norms that share theirs, all but one have others in `captured`.
    norms = {key: path for key, path in statistics if shared[key] == 1}
    places = {"": ""}
    for path in plain:
        other = others.get(path)
        if isinstance(other, QuantLayer | QuantAffine) and other.norm is not None:
            norm = other.norm if isinstance(other.norm, nn.Module) else None
            behind = norms.get(id(getattr(norm, "running_mean", None)))
            if behind is not None:
                places[behind] = path
        elif path and other is not None:
            places[path] = path
    return places


def _outputs(model: nn.Module, paths: Any, x: Tensor) -> dict[str, Tensor]:
    """Run `model` on `x`; return what the modules at `paths` gave, in the order they ran."""
    outputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def record(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and path not in outputs:
                outputs[path] = output.clone()  # an in-place ReLU may come next

        return hook

    hooks = [modules[p].register_forward_hook(record(p)) for p in paths if p in modules]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
