"""Input activations at every bit-width, without and with the meta-state (Figures 1 and 6).

MetaMix (arXiv 2311.06798): "the activation distribution significantly varies across different
activation bit-widths" (Figure 1), and much less so in the meta-state (Figure 6). Here the
whole network runs at each candidate bit-width, and what a layer's input quantizer is about to
round is recorded, twice: while BatchNorm uses the statistics of each batch, as in the paper's
figures of a network in training, where what differs is what is left *after* normalisation; and
with running statistics, which are the same at all bits, as in bit-search and on the device.

Consistency is one number: the Wasserstein-1 distance between the distributions at the widest
and at a lower bit-width, divided by the standard deviation at the widest.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qtool.analyses.meta_state import FLOAT, META, MetaMixRun, is_depthwise, open_layers
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits, Selection
from qtool.data.batches import Batch
from qtool.data.images import DataSet
from qtool.nn.control import select
from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.seeded import seeded
from qtool.runs.run import Run
from qtool.settings.base import Config, TrainConfig
from qtool.training.device import training_device
from qtool.training.evaluation import device_of

if TYPE_CHECKING:
    from rich.table import Table

WEIGHTS = (32, 8, 4)
STATES: tuple[str, ...] = (FLOAT, META)
BATCH, RUNNING = "batch", "running"
SAMPLES, BINS, SHOWN = 1 << 14, 40, 6
_TINY = 1e-30  # of a layer whose input never changes

Values = NDArray[np.float32]
# statistics, state, weight bits, activation bits
Case = tuple[str, str, int, int]
Sampled = dict[Case, dict[str, Values]]  # by layer


def analyse(
    runs: Sequence[Run], data: DataSet, images: int, progress: Progress
) -> dict[str, Any]:
    """Record the input activations of every layer whose bits are searched.

    Returns:
        ``run``, ``model``, ``images``, ``batch_size``, ``samples`` (values a layer and case);
        ``activation_bits``, ``weight_bits`` (32: float), ``reference_bits`` (the widest);
        ``consistency``: by ``statistics`` (batch, running), ``state`` (float, meta) and
        ``weights``: ``distance``, the mean over layers and lower bit-widths, and ``by_bits``;
        ``shown``: a few layers over the depth; ``example``: the one that is drawn;
        ``layers``: ``name``, ``depthwise``, ``edges`` (of the bins) and ``distributions``:
        ``statistics``, ``state``, ``weights``, ``activations``, ``mean``, ``variance``,
        ``distance`` (in standard deviations at the widest), ``density``, per unit of the
        activation.

    Raises:
        UserError: not one run of frontend metamix, trained to its meta-state.
    """
    source = MetaMixRun(runs, data, images, "activations")
    batches = source.batches()
    given = list(islice(batches.epoch(0), max(1, images // batches.size)))
    bits = sorted(source.config.activation_bits, reverse=True)
    weights = _weight_bits(source.config)
    # Forwards on batch statistics move the running ones, so these come first.
    groups = [(how, state, w) for how in (RUNNING, BATCH) for state in STATES for w in weights]
    progress.start("activations", len(groups) * len(bits))
    models = {state: source.network(state, weights[1:]) for state in STATES}
    sampled = _sample_all(models, groups, bits, given, source.config, progress)
    layers = [
        _describe(layer.name, is_depthwise(layer), sampled, bits[0])
        for layer in open_layers(models[META])
    ]
    return {
        "run": str(source.run.folder), "model": source.run.config.model,
        "images": len(given) * batches.size, "batch_size": batches.size, "samples": SAMPLES,
        "activation_bits": bits, "weight_bits": weights, "reference_bits": bits[0],
        "consistency": [_consistency(layers, group, bits[1:]) for group in groups],
        "shown": spread(layers), "example": example(layers), "layers": layers,
    }  # fmt: skip


def _weight_bits(config: Config) -> list[int]:
    """Return float, 8, 4 and the recipe's own candidates, the widest first."""
    own = config.weight_bits
    return sorted({*WEIGHTS, *([own] if isinstance(own, int) else own)}, reverse=True)


def _sample_all(
    models: dict[str, nn.Module], groups: Sequence[tuple[str, str, int]],
    bits: Sequence[int], given: Sequence[Batch], config: TrainConfig, progress: Progress,
) -> Sampled:  # fmt: skip
    """Return values of every (statistics, state, weight bits) of `groups`, at all `bits`."""
    sampled: Sampled = {}
    for how, state, w in groups:
        model = models[state].to(training_device(config))
        for a in bits:
            sampled[how, state, w, a] = _sample(model, how, LayerBits(w, a), given)
            progress.step(f"{state} state, weights {w}, activations {a} bits")
    return sampled


@torch.no_grad()
def _sample(
    model: nn.Module, statistics: str, bits: LayerBits, given: Sequence[Batch]
) -> dict[str, Values]:
    """Return values in front of every open layer's input quantizer, (`SAMPLES`,)."""
    select(model, Selection(default=bits), weights=bits.weight < 32)
    model.train(statistics == BATCH)
    # Dropout draws alike in every case.
    with seeded(0), _recording(model, max(1, SAMPLES // len(given))) as found:
        for x, _ in given:
            model(x.to(device_of(model)))
    return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}


@contextmanager
def _recording(model: nn.Module, count: int) -> Iterator[dict[str, list[Tensor]]]:
    """Within this context, each forward adds `count` values of every open layer's input.

    Places are random (a stride would favour a column of the image), the same in every case.
    """
    found: dict[str, list[Tensor]] = {}
    generator = torch.Generator().manual_seed(0)

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, Quantizer):
            flat = module.unrounded(inputs[0]).flatten()
            places = torch.randint(flat.numel(), (count,), generator=generator)
            found.setdefault(module.name, []).append(flat[places.to(flat.device)])

    hooks = [
        layer.input_quant.register_forward_pre_hook(record) for layer in open_layers(model)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _describe(name: str, depthwise: bool, sampled: Sampled, widest: int) -> dict[str, Any]:
    """Return one layer's entry of the JSON."""
    mine = {case: values[name] for case, values in sampled.items()}
    low, high = np.quantile(np.concatenate(list(mine.values())), (0.001, 0.999))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    rows = [
        {
            "statistics": how, "state": state, "weights": w, "activations": a,
            "mean": float(values.mean()), "variance": float(values.var()),
            "distance": distance(mine[how, state, w, widest], values),
            "density": _density(values, edges),
        }
        for (how, state, w, a), values in mine.items()
    ]  # fmt: skip
    return {
        "name": name, "depthwise": depthwise,
        "edges": [float(f"{edge:.6g}") for edge in edges], "distributions": rows,
    }  # fmt: skip


def _density(values: Values, edges: NDArray[np.float64]) -> list[float]:
    """Return the share of all values in each bin, per unit."""
    counts = np.histogram(values, edges)[0]
    return [float(f"{d:.5g}") for d in counts / (len(values) * np.diff(edges))]


def distance(reference: Values, values: Values) -> float:
    """Wasserstein-1 distance, in standard deviations of `reference`; both (N,)."""
    from scipy.stats import wasserstein_distance

    deviation = max(float(reference.std()), _TINY)
    return float(wasserstein_distance(reference, values)) / deviation


def _consistency(
    layers: Sequence[dict[str, Any]], group: tuple[str, str, int], lower: Sequence[int]
) -> dict[str, Any]:
    """Return the mean distances over all layers of one (statistics, state, weights)."""
    found: dict[str, list[float]] = {str(bits): [] for bits in lower}
    for row in (row for layer in layers for row in layer["distributions"]):
        if (row["statistics"], row["state"], row["weights"]) == group:
            found.setdefault(str(row["activations"]), []).append(row["distance"])
    by_bits = {str(bits): float(np.mean(found[str(bits)])) for bits in lower}
    mean = float(np.mean(list(by_bits.values()))) if by_bits else 0.0
    keys = dict(zip(("statistics", "state", "weights"), group, strict=True))
    return {**keys, "distance": mean, "by_bits": by_bits}


def spread(layers: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of a few layers over the depth, depthwise ones among them."""
    deep = [layer["name"] for layer in layers if layer["depthwise"]]
    plain = [layer["name"] for layer in layers if not layer["depthwise"]]
    chosen = {name for group in (deep, plain) if group
              for name in _evenly(group, SHOWN // (2 if deep and plain else 1))}  # fmt: skip
    return [layer["name"] for layer in layers if layer["name"] in chosen]


def _evenly(names: Sequence[str], count: int) -> list[str]:
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    return [names[place] for place in places]


def example(layers: Sequence[dict[str, Any]]) -> str:
    """Return the name of the middle depthwise layer, of the middle layer without any.

    Not the first: in front of it nothing depends on the candidates yet.
    """
    deep = [layer["name"] for layer in layers if layer["depthwise"]]
    names = deep or [layer["name"] for layer in layers]
    return str(names[len(names) // 2])


def table(content: dict[str, Any]) -> "Table":
    """Return the distances of a few layers and of all."""
    from qtool.report.activations import distances_table

    return distances_table(content)


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw the densities of one layer, and every layer's distance, as a PNG."""
    from qtool.report.activations import distributions_picture

    distributions_picture(content, path)
