"""Chosen bits, layer by layer, beside what they may depend on (MetaMix, Figures 7 and 9).

Figure 9 sets the chosen activation bits against (a) "the sum of Hessian trace", (b) operations
and (c) their quotient, and says that bits follow the quotient best. Our reading: the trace is
the sum over a layer's elements (`qtool.search.curvature`), OPs are MACs. Which tensor's, the
paper does not say; here are the weight's trace, the input's, and their sum. Several runs stand
one above the other, as Figure 7 compares bits found with and without the fixed meta-state.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtool.analyses.choices_picture import draw
from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.data.batches import Batch, to_batch
from qtool.data.images import DataSet
from qtool.networks import build_prepared, load_float
from qtool.nn.control import quant_layers
from qtool.nn.modules.quant_layer import Layer
from qtool.runs.run import Run
from qtool.search.curvature import LayerTraces, layer_traces
from qtool.search.space import Space, space_of
from qtool.settings.base import TrainConfig
from qtool.training.device import training_device

__all__ = ["analyse", "draw"]

PROBES = 8
# Pixels a batch: double gradients of all layers' inputs are in memory at once.
_PIXELS, _LARGEST_BATCH = 300_000, 64
# What chosen bits are correlated with, from a layer's row of the result.
MEASURES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "trace": lambda row: row["weight_trace"] + row["activation_trace"],
    "weight_trace": lambda row: row["weight_trace"],
    "activation_trace": lambda row: row["activation_trace"],
    "macs": lambda row: row["macs"],
    "trace_per_mac": lambda row: MEASURES["trace"](row) / row["macs"],
    "weight_trace_per_mac": lambda row: row["weight_trace"] / row["macs"],
    "activation_trace_per_mac": lambda row: row["activation_trace"] / row["macs"],
}


def analyse(
    runs: Sequence[Run], data: DataSet, images: int, progress: Progress
) -> dict[str, Any]:
    """Return chosen bits, Hessian traces and MACs of every layer, and rank correlations.

    ``layers``: a row for each layer: name, depthwise, open (its bits were chosen), macs,
    traces with the standard errors that the probes leave, and the quotients of `MEASURES`.
    ``runs``: a row for each run: name, bops, bits ([weight, activation] by layer), and
    rank_correlation, Spearman's of the chosen activation bits with each of `MEASURES` over the
    open layers (null where all bits are equal). Traces are those of the first run's float
    network, over ``images``.

    Args:
        runs: one or more, of the same network, each with a bits.json.
        data: its first training images are used, without augmentation.
        images: how many.
        progress: told of every batch.

    Raises:
        UserError: no images; no bits.json in a run, or no bits for a layer in it.
    """
    if images < 1:
        raise UserError(f"analysis choices: got {images} images, expected 1 or more")
    first = runs[0]
    prepared, float_net = build_prepared(first), load_float(first)
    if isinstance(first.config, TrainConfig):
        float_net.to(training_device(first.config))
    space = space_of(prepared, first.input_shape)
    names = [layer.name for layer in space.layers]
    bits = [_chosen_bits(run, names) for run in runs]
    batches = _batches(data, images, progress)
    traces = layer_traces(float_net, names, batches, PROBES, first.config.seed)
    rows = _layer_rows(space, traces, {q.name: q.layer for q in quant_layers(prepared)})
    return {
        "images": traces.images_seen // PROBES, "probes": PROBES,
        "seed": first.config.seed, "traces_of": _run_name(first), "layers": rows,
        "runs": [
            _run_row(run, chosen, rows) for run, chosen in zip(runs, bits, strict=True)
        ],
    }  # fmt: skip


def _chosen_bits(run: Run, names: Sequence[str]) -> dict[str, list[int]]:
    """Return [weight, activation] of layers `names` from the run's bits.json."""
    if run.load_bits() is None:
        raise UserError(
            f"run {run.folder} has no bits.json: search first "
            f"(qtool search {run.folder} --bops N), or leave it out"
        )
    layers = run.selection().layers
    for name in names:
        if name not in layers:
            raise UserError(
                f"{run.path('bits.json')} has no layer {name}, which the first run's network "
                "has: compare runs of the same network"
            )
    return {name: [layers[name].weight, layers[name].activation] for name in names}


def _batches(data: DataSet, images: int, progress: Progress) -> Iterator[Batch]:
    source = data.train.head(images)
    pixels = source.shape[-2] * source.shape[-1] * source.frames
    size = max(1, min(_LARGEST_BATCH, _PIXELS // pixels))
    starts = range(0, len(source), size)
    progress.start("hessian", len(starts))
    for start in starts:
        end = min(start + size, len(source))
        yield to_batch(source, slice(start, end))
        progress.step(f"{end} images, {PROBES} probes each")


def _layer_rows(
    space: Space, traces: LayerTraces, convolutions: Mapping[str, Layer]
) -> list[dict[str, Any]]:
    """Return the rows of ``layers``; where a recipe left nothing open, all layers count."""
    rows = []
    for layer in space.layers:
        trace = traces[layer.name]
        row: dict[str, Any] = {
            "name": layer.name,
            "depthwise": getattr(convolutions[layer.name], "groups", 1) > 1,
            "open": layer.is_open or not space.open,
            "macs": layer.macs,
            "weight_trace": trace.weight, "weight_trace_error": trace.weight_error,
            "activation_trace": trace.activation,
            "activation_trace_error": trace.activation_error,
        }  # fmt: skip
        rows.append({**row, **{name: measure(row) for name, measure in MEASURES.items()}})
    return rows


def _run_row(
    run: Run, bits: dict[str, list[int]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    chosen = [row for row in rows if row["open"]]
    activations = [bits[row["name"]][1] for row in chosen]
    content = run.load_bits() or {}
    return {
        "name": _run_name(run), "bops": content.get("bops"), "bits": bits,
        "rank_correlation": {
            name: rank_correlation(activations, [row[name] for row in chosen])
            for name in MEASURES
        },
    }  # fmt: skip


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, None where one of the two never varies."""
    from scipy.stats import spearmanr

    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    found = float(spearmanr(a, b).statistic)
    return found if math.isfinite(found) else None


def _run_name(run: Run) -> str:
    """Return the run's folder, with the one that it is in where there is one."""
    parts: tuple[str, ...] = Path(run.folder).parts[-2:]
    return "/".join(part for part in parts if part not in ("/", ".."))
