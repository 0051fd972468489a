"""The witness of an export: the run's torch networks.

1. The network with its quantizers at the exported bits: every quantizer's result is an integer
   tensor of the artifact, and must be the same integers.
2. The user's own float network, as it was before anything captured it: what each layer reads,
   and the output.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from passes.twins import Key
from qtool.core.selection import Selection
from qtool.networks import load_deployed, load_float
from qtool.nn.capture.operators import is_plain
from qtool.nn.control import called_layers, quantizers
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.witness.origin import Known
from runtimes.base import Floats


@torch.no_grad()
def known_of_run(run: Run, selection: Selection, x: Floats) -> Known:
    """Return what the networks of `run` compute for `x`, (N, C, H, W) as they take it.

    Raises:
        UserError: bits that were not trained, or damaged weights.
    """
    deployed = load_deployed(run, selection).eval()
    images = torch.from_numpy(x)
    with quantized(deployed) as exact:
        exact_output = _array(deployed(images))
    if not run.has_weights(Stage.FLOAT):
        return Known(exact=exact, exact_output=exact_output)
    network = load_float(run).eval()
    with _read(network, [layer.name for layer in called_layers(deployed)]) as floats:
        output = _array(network(images.clone()))  # it may write to its images in place
    return Known(floats, exact, output, exact_output)


@contextmanager
def quantized(model: nn.Module) -> Iterator[dict[Key, Floats]]:
    """Within this context, keep what every quantizer that is on returns."""
    kept: dict[Key, Floats] = {}

    def keep(module: nn.Module, _: object, result: Tensor) -> None:
        if getattr(module, "selected", None) is not None:
            kept[str(module.role), str(module.name)] = _array(result)

    found = [quantizer for quantizer in quantizers(model) if quantizer.role != "weight"]
    hooks = [quantizer.register_forward_hook(keep) for quantizer in found]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _read(model: nn.Module, layers: list[str]) -> Iterator[dict[Key, Floats]]:
    """Within this context, keep what the user's layers read.

    A layer that is no module of its own in the user's network is left out, and so is one that
    computes something before it convolves: what it is given is not what the device reads.
    """
    kept: dict[Key, Floats] = {}
    modules = dict(model.named_modules())

    def keeper(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            kept["activation", name] = _array(inputs[0])

        return keep

    known = [name for name in layers if name in modules and is_plain(modules[name])]
    hooks = [modules[name].register_forward_pre_hook(keeper(name)) for name in known]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _array(values: Tensor) -> Floats:
    """Return a copy: what comes behind may work in place."""
    return np.array(values.detach().float().cpu().contiguous().numpy())
