"""What a search costs, in epochs of float training: every kind of step on one batch, in turns.

    python benchmarks/search_cost.py RUN --data DIR [--turns 7] [--threads 1] [--json FILE]

RUN is a run of frontend metamix. Printed are medians and quartiles of a step's time over that
of a float step, and what follows for a whole search: one epoch of bit-meta and one of bit-meta
and bit-search in turn (MetaMix, Table 1); as many of DNAS; the metrics' own time.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from qtool.core.files import write_json
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits, Selection
from qtool.data import load_dataset
from qtool.data.batches import Batch, to_batch
from qtool.frontends.meta_state import load_meta
from qtool.frontends.metamix.bit_meta import bit_meta
from qtool.networks import build_prepared, load_float
from qtool.nn.control import calibrate, select
from qtool.runs.run import Run
from qtool.search.bit_search import BitSearch
from qtool.search.differentiable import mixture_losses, search_step
from qtool.search.limits import Limit, layer_bops, limit_of
from qtool.search.methods import Task
from qtool.search.metric import greedy, hessian
from qtool.search.results import prepared
from qtool.search.space import space_of
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.search import search_settings
from qtool.training.averages import Averages
from qtool.training.ingredients import make_objective, settings_of
from qtool.training.losses import Objective
from qtool.training.update import Losses, Pass, Update

Step = Callable[[], object]


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path))
@click.option("--turns", default=7, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path))
def main(
    folder: Path, data: Path | None, turns: int, threads: int, output: Path | None
) -> None:
    """Time the steps and the metrics of the run in RUN."""
    torch.set_num_threads(threads)
    run = Run.open(folder)
    images = load_dataset(run.config.dataset, data)
    task = _task(run, images)
    steps = _steps(task)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns + 1):
        for name, step in steps.items():
            times[name].append(_seconds(step))
    rows = {name: _row(values[1:], times["float"][1:]) for name, values in times.items()}
    batches = len(images.train) // run.config.batch_size
    epoch = rows["float"]["ms"] / 1e3 * batches
    metrics = {m.__name__: _seconds(partial(m, task)) / epoch for m in (hessian, greedy)}
    for name, row in rows.items():
        low, high = row["quartiles"]
        click.echo(f"{name:22} {row['ms']:8.1f} ms  {row['ratio']:.2f} ({low:.2f}-{high:.2f})")
    meta = rows["bit-meta"]["ratio"]
    whole = 2 * meta + rows["bit-search, a budget"]["ratio"]
    click.echo(f"metamix: {whole:.2f} float epochs, of which the meta-state {meta:.2f}")
    dnas = 2 * rows["dnas, a budget"]["ratio"]
    click.echo(f"dnas: {dnas:.2f} float epochs")
    for name, value in metrics.items():
        click.echo(f"{name}: {value:.2f} float epochs")
    if output is not None:
        write_json(
            output,
            {"rows": rows, "metamix": whole, "dnas": dnas, **metrics, "threads": threads},
        )


def _task(run: Run, images: Any) -> Task:
    config = search_settings(settings_of(run, MetaMixConfig))
    model = prepared(run, config)
    load_meta(model, run)
    space = space_of(model, run.input_shape)
    low, high = limit_of("bops", 0, space, layer_bops).span
    limits: tuple[Limit, ...] = (limit_of("bops", (low + high) / 2, space, layer_bops),)
    return Task(run, config, images, model, space, [("", limits)], Silent(), False)


def _steps(task: Task) -> dict[str, Step]:
    x, labels = to_batch(task.data.train, slice(0, task.config.batch_size))
    config, meta, objective = task.config, task.model, make_objective(task.config)
    quantized = prepared(task.run, config)
    load_meta(quantized, task.run)
    search = BitSearch(config, meta, task.space, task.budgets[0][1], is_fixed=True)
    along = build_prepared(task.run, float_weights=True)
    calibrate(along, x)
    dnas = BitSearch(config, along, task.space, task.budgets[0][1], quantize_weights=True)
    update = Update(config, along, config.meta_lr)
    widths = LayerBits(4, config.activation_bits[1])

    def alpha_step(search: BitSearch) -> None:
        search_step(search, x, labels, objective.on(x, labels), Averages())

    def meta_alpha_step() -> None:
        meta.eval()
        alpha_step(search)

    weights = mixture_losses(along, dnas, objective)

    def dnas_step() -> None:
        _update(update, weights, (x, labels))
        alpha_step(dnas)

    return {
        "float": _training(task, load_float(task.run), x, labels),
        "bit-meta": partial(
            _update, *bit_meta(config, config.meta_lr, meta, objective), (x, labels)
        ),
        "bit-search, a budget": meta_alpha_step,
        "dnas, a budget": dnas_step,
        "fine-tuning": _training(task, quantized, x, labels, Selection(default=widths)),
    }


def _training(
    task: Task, model: torch.nn.Module, x: Tensor, labels: Tensor,
    selection: Selection | None = None,
) -> Step:  # fmt: skip
    """Return a plain training step; the float one has no teacher."""
    objective = make_objective(task.config) if selection else Objective(task.config)

    def losses(batch: Batch) -> Iterator[Pass]:
        x, labels = batch
        model.train()
        if selection is not None:
            select(model, selection)
        logits = model(x)
        yield Pass(objective.on(x, labels)(logits), logits, labels)

    return partial(_update, Update(task.config, model, 1e-3), losses, (x, labels))


def _update(update: Update, losses: Losses[Batch], batch: Batch) -> None:
    update(losses, batch, Averages())


def _seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _row(seconds: list[float], base: list[float]) -> dict[str, Any]:
    ratios = sorted(one / other for one, other in zip(seconds, base, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    median = statistics.median(seconds)
    return {"ms": 1e3 * median, "ratio": middle, "quartiles": (low, high)}


if __name__ == "__main__":
    main()
