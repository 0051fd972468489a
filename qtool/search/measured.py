"""Search by measured divergence, on jointly trained weights: nothing is trained.

D[l][c] = KL(p || p_lc), mean over images: p is what the network predicts with every layer at
its widest choice, p_lc with layer l at choice c. A selection costs the sum over its layers;
the least sum within a budget is found by integer programming (`qtool.search.fit`). All budgets
come from one table, which is kept layer by layer (`TABLE`).

The divergence from the network's own predictions, not the rise of its loss: it has no noise of
labels, is never negative, and adds up (docs/search.md). So it does over the weights and the
input of a layer: where both are choices by themselves, both together are not measured.

BatchNorm normalises with the batch: each selection has statistics of its own afterwards.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.files import read_json, write_json
from qtool.core.pairs import pair_key
from qtool.core.selection import LayerBits, Selection
from qtool.data.batches import Batch
from qtool.data.clips import clip_logits
from qtool.nn.control import select
from qtool.parallel.collectives import all_reduce_sum
from qtool.parallel.together import on_main
from qtool.runs.run import Run
from qtool.search.fit import least
from qtool.search.greedy import widest_of
from qtool.search.methods import Found, Task
from qtool.search.space import SearchLayer
from qtool.search.undisturbed import undisturbed
from qtool.training.evaluation import device_of
from qtool.training.ingredients import make_batches
from qtool.training.transductive import follow_batches

# Training images that divergences are measured on, in whole batches.
MEASURED_IMAGES = 512
# Divergences by layer and choice, in nats, in the run of a front.
TABLE = "divergences.json"
_FORMAT = 1


def measured(task: Task) -> list[Found]:
    """Choose the least sum of divergences within every budget."""
    table, layers = divergences(task), task.space.open
    rows = [[table[layer.name][pair_key(bits)] for bits in layer.choices] for layer in layers]
    return [Found(least(rows, limits)) for _, limits in task.budgets]


def divergences(task: Task) -> dict[str, dict[str, float]]:
    """Return the divergence of every choice of every open layer, by names, in nats.

    What the task's run keeps of them is not measured again.
    """
    layers, known = task.space.open, _read(task.run)
    todo = [layer for layer in layers if layer.name not in known]
    if not todo:
        return known
    widest = {layer.name: widest_of(layer) for layer in layers}
    task.progress.start("measuring", len(todo))
    with undisturbed(task.model):
        follow_batches(task.model)
        batches = _batches(task)
        reference = _predictions(task.model, widest, batches)
        for layer in todo:

            def measure(bits: LayerBits, name: str = layer.name) -> float:
                moved = _predictions(task.model, {**widest, name: bits}, batches)
                return _divergence(reference, moved)

            row = divergences_of(layer, measure)
            known = {**known, layer.name: {pair_key(b): d for b, d in row.items()}}
            _write(task.run, known)
            task.progress.step(layer.name)
    return known


def divergences_of(
    layer: SearchLayer, measure: Callable[[LayerBits], float]
) -> dict[LayerBits, float]:
    """Return the divergence of every choice of `layer`; 0 of the widest.

    Args:
        layer: an open one.
        measure: returns that of a choice; asked once for each that is no sum of others.
    """
    widest, found = widest_of(layer), {}
    found[widest] = 0.0
    for bits in layer.choices:
        parts = _parts(bits, widest)
        for part in parts if set(parts) <= set(layer.choices) else (bits,):
            if part not in found:
                found[part] = measure(part)
        if bits not in found:
            found[bits] = sum(found[part] for part in parts)
    return {bits: found[bits] for bits in layer.choices}


def _parts(bits: LayerBits, widest: LayerBits) -> tuple[LayerBits, LayerBits]:
    """Return the choices that differ from `widest` as `bits` do, in one tensor each."""
    return LayerBits(bits.weight, widest.activation), LayerBits(widest.weight, bits.activation)


def _batches(task: Task) -> list[Batch]:
    """Return the first training batches, as statistics are taken on."""
    batches = make_batches(task.config, task.data)
    count = max(1, MEASURED_IMAGES // batches.size)
    return [batch for _, batch in zip(range(count), batches.epoch(0), strict=False)]


@torch.no_grad()
def _predictions(
    model: nn.Module, layers: dict[str, LayerBits], batches: Sequence[Batch]
) -> Tensor:
    """Return log-probabilities (images, classes) at the bits of `layers`."""
    select(model, Selection(layers))
    device = device_of(model)
    logits = [clip_logits(model(x.to(device)), len(labels)) for x, labels in batches]
    return functional.log_softmax(torch.cat(logits).double(), 1)


def _divergence(reference: Tensor, moved: Tensor) -> float:
    """Return KL(reference || moved), in nats, mean over the images of all processes."""
    total = functional.kl_div(moved, reference, reduction="sum", log_target=True)
    both = all_reduce_sum(torch.stack([total, total.new_tensor(len(moved))]))
    return float(both[0] / both[1])


def _read(run: Run) -> dict[str, dict[str, float]]:
    path = run.path(TABLE)
    return dict(read_json(path, "divergences")["layers"]) if path.exists() else {}


def _write(run: Run, table: dict[str, dict[str, float]]) -> None:
    content = {"format": _FORMAT, "images": MEASURED_IMAGES, "layers": table}
    on_main(lambda: write_json(run.path(TABLE), content))
