"""One jointly trained network's front beside networks that MetaMix searched and fine-tuned.

    python benchmarks/joint_front.py --data DIR --out DIR --json FILE --picture FILE
        [--recipe coquant_mobilenet_v2_small_cifar] [--bits 8,6,4,2] [--points 5]
        [--seeds 0,1,2] [--set KEY=VALUE ...] [--metamix-set KEY=VALUE ...] [--threads 1]

For each seed: MetaMix's float network and meta-state; from the same float weights the joint
run; its front of --points budgets without further training; MetaMix's search under the same
budgets, each fine-tuned. Network, images, batches, loss, float epochs and candidates
are the joint recipe's. Bit-meta, bit-search and fine-tuning of one MetaMix point take as many
epochs together as the joint run's, which serves all points; "passes" are back-propagations
over the training images for all points, float epochs not counted. MetaMix may combine all bits
of weights and inputs; a layer of the joint run has one of the run's pairs.

Every point, and the joint run at every uniform pair, is measured as deployed: the integer file
in ONNX Runtime on the whole test set, and in how many integers it differs from the numpy
reference. What was interrupted goes on when the same command is repeated.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from deployed import differing, measure, qtool, train

from qtool.core.files import read_json, write_json
from qtool.core.pairs import deployable, pair_name
from qtool.recipes import load_recipe
from qtool.report.pareto import front_picture
from qtool.runs.run import Run
from qtool.search.front import on_front
from qtool.settings.base import TrainConfig
from qtool.settings.mebqat import MebqatConfig
from qtool.settings.override import override

_PATH = click.Path(path_type=Path)
_JOINT, _METAMIX, _UNIFORM = "jointly trained, searched", "MetaMix", "jointly trained, uniform"
# What MetaMix's recipe takes over; its own are quantizers and learning rates at bits.
_SAME = (
    "model", "dataset", "augment", "batch_size", "train_images", "image_size", "mean", "std",
    "label_smoothing", "weight_decay", "warmup", "float_epochs", "float_lr", "first_last_bits",
)  # fmt: skip


@click.command()
@click.option("--data", type=_PATH, help="Folder with the data set's files.")
@click.option("--out", type=_PATH, required=True, help="Folder of the runs.")
@click.option("--recipe", default="coquant_mobilenet_v2_small_cifar", show_default=True)
@click.option("--bits", default="8,6,4,2", show_default=True, help="Candidates of both.")
@click.option("--points", default=5, show_default=True, help="Budgets between the ends.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--set", "settings", multiple=True, help="Of the joint recipe.")
@click.option(
    "--metamix-set", "searching", multiple=True, show_default=True,
    default=("search_lambda=20", "alpha_lr=0.02"), help="Of MetaMix's.",
)  # fmt: skip
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "output", type=_PATH, required=True, help="The rows.")
@click.option("--picture", type=_PATH, required=True, help="Their picture, a PNG.")
def main(
    data: Path | None, out: Path, recipe: str, bits: str, points: int, seeds: str,
    settings: Sequence[str], searching: Sequence[str], threads: int, output: Path,
    picture: Path,
) -> None:  # fmt: skip
    """Train, search, export, check; print a Markdown table."""
    source = () if data is None else ("--data", str(data))
    rows: list[dict[str, Any]] = []
    for seed in seeds.split(","):
        both = [f"seed={seed}", f"activation_bits={bits}", f"weight_bits={bits}", *settings]
        joint = override(load_recipe(recipe), both)
        assert isinstance(joint, TrainConfig), recipe
        meta, run = out / f"metamix-{seed}", out / f"joint-{seed}"
        train(meta, "metamix", source, [*_taken_over(joint, bits), *searching], threads)
        train(run, recipe, source, [*both, f"weights={meta}"], threads)
        qtool(threads, "search", run, *source, "--front", points)
        budgets = [f"{_point(run, place)['budget_bops']:.0f}" for place in _places(run)]
        _search(meta, budgets, source, threads)
        qtool(threads, "eval", run, *source)
        rows += _measured(seed, run, meta, source, threads)
        write_json(output, {"rows": rows})
    _draw(rows, picture)
    click.echo("\n".join(markdown(rows)))


def _taken_over(joint: TrainConfig, bits: str) -> list[str]:
    """Return MetaMix's settings: `joint`'s, and as many epochs."""
    values = {name: getattr(joint, name) for name in _SAME}
    values |= {"seed": joint.seed, "activation_bits": bits, "weight_bits": bits}
    epochs = int(getattr(joint, "epochs"))  # noqa: B009 (each joint frontend has them)
    values["finetune_epochs"] = max(0, epochs - 2)
    values |= {"meta_epochs": 1, "search_epochs": 1}
    texts = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }
    return [f"{name}={text}" for name, text in texts.items()]


def _search(run: Path, budgets: Sequence[str], source: Sequence[str], threads: int) -> None:
    more = ("--resume",) if (run / "pareto" / "recipe.json").exists() else ()
    asked = (word for budget in budgets for word in ("--bops", budget))
    qtool(threads, "search", run, *source, *asked, *more)


def _places(run: Path) -> list[Path]:
    """Return the folders of the searched points of `run`."""
    content = read_json(run / "pareto" / "pareto.json", "front")
    return [run / "pareto" / point["run"] for point in content["points"]]


def _point(run: Path, place: Path) -> dict[str, Any]:
    return read_json(place / "bits.json", f"bits of {run}")


def _measured(
    seed: str, run: Path, meta: Path, source: Sequence[str], threads: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for every searched point and uniform pair."""
    for name, folder in ((_JOINT, run), (_METAMIX, meta)):
        places = _places(folder)
        passes = _passes(Run.open(folder), len(places))
        for place in places:
            budget = _point(folder, place)["budget_bops"]
            found = measure(place, source, "reference,ort", threads)
            yield {**found, "method": name, "seed": seed, "budget": budget, "passes": passes,
                   "deployed": found["accuracy"]["ort"]}  # fmt: skip
    pairs = {pair_name(pair) for pair in Run.open(run).config.pairs() if deployable(pair)}
    for name, pair in read_json(run / "eval.json", "evaluation")["pairs"].items():
        if name in pairs and pair["where"] != "torch":
            yield {"method": _UNIFORM, "seed": seed, "bits": name, "bops": pair["bops"],
                   "deployed": pair["accuracy"]}  # fmt: skip


def _passes(run: Run, points: int) -> int:
    """Return back-propagations over the training images that all `points` together take."""
    config: Any = run.config
    pairs = len(config.pairs())
    if config.frontend != "metamix":
        tasks = config.tasks if isinstance(config, MebqatConfig) else pairs
        return int(config.epochs * tasks)
    search = config.search_epochs * (pairs + points)
    return int(config.meta_epochs * pairs + search + config.finetune_epochs * points)


def markdown(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table, means over seeds; of uniform pairs the best that fits."""
    yield (
        "| budget, MBOPs | joint, searched | MetaMix | joint, best uniform pair "
        "| joint - MetaMix | integers that differ |"
    )
    yield "|---" * 6 + "|"
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    for budget in sorted({row["budget"] for row in rows if "budget" in row}):
        mine = [row for row in rows if row.get("budget") == budget]
        joint, other = (_mean(mine, name) for name in (_JOINT, _METAMIX))
        best = fmean(_best_uniform(rows, seed, budget) for seed in seeds)
        counts = {
            key: sum(row["parity"][key] for row in mine) for key in ("mismatched", "compared")
        }
        yield (
            f"| {budget / 1e6:.1f} | {joint:.2f} | {other:.2f} | {best:.2f} "
            f"| {joint - other:+.2f} | {differing(counts)} |"
        )
    for name in (_JOINT, _METAMIX):
        passes = {row["passes"] for row in rows if row["method"] == name}
        yield f"\n{name}: {', '.join(map(str, sorted(passes)))} passes for all budgets"


def _mean(rows: Sequence[dict[str, Any]], method: str) -> float:
    return fmean(row["deployed"] for row in rows if row["method"] == method)


def _best_uniform(rows: Sequence[dict[str, Any]], seed: str, budget: float) -> float:
    return max(
        row["deployed"] for row in rows
        if (row["method"], row["seed"]) == (_UNIFORM, seed) and row["bops"] <= budget
    )  # fmt: skip


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw every row, and each method's front over all seeds."""
    points = []
    for name in (_JOINT, _METAMIX, _UNIFORM):
        mine = [row for row in rows if row["method"] == name]
        marks = on_front([(row["bops"], row["deployed"]) for row in mine])
        points += [
            {"method": name, "bops": row["bops"], "accuracy": row["deployed"],
             "deployed": True, "front": mark}
            for row, mark in zip(mine, marks, strict=True)
        ]  # fmt: skip
    front_picture({"points": points, "float_accuracy": {}}, path)


if __name__ == "__main__":
    main()
