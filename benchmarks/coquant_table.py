"""Joint training at several precisions: CoQuant, its baselines, its ablations, as tables.

    python benchmarks/coquant_table.py --data DIR --out DIR --json FILE [--seeds 0,1,2]
        [--methods individual,vanilla,switchable,adabits,any_precision,double_rounding,coquant]
        [--ablation lambda|precisions|quantizers] [--set KEY=VALUE ...] [--threads 1]
        [--recipe coquant_mobilenet_v2_small_cifar]
        [--individual qat_pact_mobilenet_v2_small_cifar]

For each seed: trains the float network once, then from its weights one network for each
precision (individual) and one for all by each method, or the variants of an ablation instead
of the methods. Each is measured by `qtool eval`: the accuracy of the deployed integer files in
ONNX Runtime on the whole test set (8 bits of Any-Precision and DoReFa, which have no file,
in torch); the methods also at widths that were not trained, with BatchNorm calibrated on
training images, and relative to the individual networks (--delta). Individual networks are
trained for an ablation too, at every precision that it trains. What was interrupted goes on
when the same command is repeated; nothing is trained or measured twice.

Tables: accuracy and Delta_B; zero-shot accuracy, and how far it is from the straight line
between the trained neighbours. Means over seeds, with the sample's standard deviation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click
from deployed import qtool

from qtool.core.files import read_json, write_json

_PATH = click.Path(path_type=Path)
INDIVIDUAL = "individual"
_METHODS = "individual,vanilla,switchable,adabits,any_precision,double_rounding,coquant"
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """What is trained.

    Args:
        name: in tables and folders.
        settings: of its recipe.
        precisions: that it is trained at, the highest first.
        alone: one network a precision, by the recipe of the individual ones.
    """

    name: str
    settings: tuple[str, ...]
    precisions: tuple[int, ...]
    alone: bool = False


_ABLATIONS = {
    # Supplement, section 4: 98.3, 100.1 and 97.7 % on CIFAR-10, ResNet-18.
    "lambda": {
        f"lambda {value}": ("method=coquant", f"teacher_lambda={value}")
        for value in ("0", "0.001", "1")
    },
    # Table 4, all widths that lie between the trained ones.
    "precisions": {
        f"B {bits}": ("method=coquant", f"activation_bits={bits}")
        for bits in ("8,6,4,2", "8,2", "8,4")
    },
    # Table 5: individual networks.
    "quantizers": {
        name: (f"weight_quantizer={name}",) for name in ("sat", "sat_centered", "dorefa")
    },
}
_ALONE = ("quantizers",)
_EVERY_WIDTH = ("precisions",)


def variants(methods: str, ablation: str | None, precisions: Sequence[int]) -> list[Variant]:
    """Return what is trained, the individual networks first where they are among it."""
    if ablation is None:
        return [
            Variant(INDIVIDUAL, (), tuple(precisions), alone=True)
            if name == INDIVIDUAL
            else Variant(name, (f"method={name}",), tuple(precisions))
            for name in sorted(methods.split(","), key=lambda name: name != INDIVIDUAL)
        ]
    found = [Variant(INDIVIDUAL, (), tuple(precisions), alone=True)]
    for name, settings in _ABLATIONS[ablation].items():
        own = [each for each in settings if each.startswith("activation_bits=")]
        bits = [int(b) for b in own[0].partition("=")[2].split(",")] if own else precisions
        found.append(Variant(name, settings, tuple(bits), ablation in _ALONE))
    return found


@dataclass(frozen=True)
class Bench:
    """Where runs are, and what they are trained from.

    Args:
        out: folder of the runs.
        source: the option --data with its value, or nothing.
        calibration: value of --calibration.
        recipe, individual: names of the recipes.
        threads: of torch.
        settings: of every run.
    """

    out: Path
    source: tuple[str, ...]
    calibration: str
    recipe: str
    individual: str
    threads: int
    settings: tuple[str, ...] = field(default=())

    def train(self, name: str, recipe: str, seed: str, *settings: str) -> Path:
        """Train, or go on with, a run; return its folder."""
        run = self.out / f"{name}-{seed}".replace(" ", "_").replace(",", "_")
        if not (run / "model.safetensors").exists():
            more = ("--resume",) if (run / "recipe.json").exists() else ()
            chosen = (f"seed={seed}", *self.settings, *settings)
            words = (word for each in chosen for word in ("--set", each))
            qtool(self.threads, "train", recipe, "--out", run, *self.source, *words, *more)
        return run

    def evaluate(self, run: Path, widths: Sequence[int], *more: object) -> dict[str, Any]:
        """Return what `qtool eval` finds at `widths`, as its JSON."""
        output, bits = run / "table.json", ",".join(f"w{b}a{b}" for b in widths)
        qtool(
            self.threads, "eval", run, *more, "--bits", bits, *self.source, "--json", output,
            "--force",
        )  # fmt: skip
        return read_json(output, "evaluation")


def trained(bench: Bench, variant: Variant, seed: str, widths: Sequence[int]) -> Row:
    """Train `variant` with `seed` and measure it; return its row.

    Args:
        bench: where.
        variant: what.
        seed: of everything.
        widths: to measure, between the trained ones, beside these.
    """
    start = bench.train("float", bench.individual, seed, "epochs=0")
    weights, row = f"weights={start}", {"variant": variant.name, "seed": int(seed)}
    if variant.alone:
        pairs: dict[str, Any] = {}
        for b in variant.precisions:
            bits = f"bits=w{b}a{b}"
            run = bench.train(
                f"{variant.name}-w{b}a{b}", bench.individual, seed, weights, bits,
                *variant.settings,
            )  # fmt: skip
            pairs |= bench.evaluate(run, [b])["pairs"]
        return row | {"pairs": pairs}
    trains_at = f"activation_bits={','.join(map(str, variant.precisions))}"
    run = bench.train(variant.name, bench.recipe, seed, weights, trains_at, *variant.settings)
    single = [bench.out / f"{INDIVIDUAL}-w{b}a{b}-{seed}" for b in variant.precisions]
    compared = ("--delta", *single) if all(map(Path.exists, single)) else ()
    found = bench.evaluate(run, variant.precisions, *compared)
    more = {"delta": found["delta"]["delta"]} if compared else {}
    if between := [w for w in widths if w not in variant.precisions and _inside(w, variant)]:
        added = bench.evaluate(run, between, "--calibration", bench.calibration)
        found["pairs"] |= added["pairs"]
    return row | {"pairs": found["pairs"], **more}


def _inside(width: int, variant: Variant) -> bool:
    return min(variant.precisions) < width < max(variant.precisions)


@click.command()
@click.option("--data", type=_PATH, required=True, help="Folder with the data set's files.")
@click.option("--out", type=_PATH, required=True, help="Folder of the runs.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--methods", default=_METHODS, show_default=True)
@click.option("--ablation", type=click.Choice(list(_ABLATIONS)), help="Instead of methods.")
@click.option("--precisions", default="8,6,4,2", show_default=True)
@click.option("--zero-shot", default="7,5,3", show_default=True, help="Widths never trained.")
@click.option("--recipe", default="coquant_mobilenet_v2_small_cifar", show_default=True)
@click.option("--individual", default="qat_pact_mobilenet_v2_small_cifar", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Of every run.")
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "output", type=_PATH, help="Add the rows to this file.")
def main(
    data: Path, out: Path, seeds: str, methods: str, ablation: str | None, precisions: str,
    zero_shot: str, recipe: str, individual: str, settings: tuple[str, ...], threads: int,
    output: Path | None,
) -> None:  # fmt: skip
    """Train and evaluate; print Markdown tables."""
    bench = Bench(out, ("--data", str(data)), str(data), recipe, individual, threads, settings)
    bits = [int(b) for b in precisions.split(",")]
    widths = [int(b) for b in zero_shot.split(",") if b]
    if ablation in _EVERY_WIDTH:
        widths = list(range(max(bits), min(bits) - 1, -1))
    rows = [] if output is None or not output.exists() else read_json(output, "rows")["rows"]
    planned = variants(methods, ablation, bits)
    for seed in seeds.split(","):
        for variant in planned:
            row = {"recipe": recipe, **trained(bench, variant, seed, widths)}
            rows = [*(old for old in rows if _key(old) != _key(row)), row]
            if output is not None:
                write_json(output, {"rows": rows})
    shown = [row for row in rows if row["variant"] in {variant.name for variant in planned}]
    click.echo("\n".join([*accuracies(shown), "", *zero_shots(shown)]))


def _key(row: Row) -> tuple[Any, ...]:
    return row["variant"], row["seed"], row["recipe"]


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each variant, in the order they came."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    return found


def accuracies(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table of trained precisions; * where they are not deployed."""
    widths = _widths(rows, untrained=False)
    yield f"| | seeds | {' | '.join(f'{b} bits' for b in widths)} | Delta_B |"
    yield "|---" * (len(widths) + 3) + "|"
    for name, group in _groups(rows).items():
        cells = [_cell(group, b, untrained=False) for b in widths]
        deltas = [row["delta"] for row in group if "delta" in row]
        delta = f"{_mean(deltas)} %" if deltas else ""
        yield f"| {name} | {_seeds(group)} | {' | '.join(cells)} | {delta} |"


def zero_shots(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table of widths that were never trained.

    In brackets: above the straight line between the trained neighbours.
    """
    widths = _widths(rows, untrained=True)
    if not widths:
        return
    yield f"| zero-shot | seeds | {' | '.join(f'{b} bits' for b in widths)} |"
    yield "|---" * (len(widths) + 2) + "|"
    for name, group in _groups(rows).items():
        cells = [_cell(group, b, untrained=True) for b in widths]
        if any(cells):
            yield f"| {name} | {_seeds(group)} | {' | '.join(cells)} |"


def _seeds(group: Sequence[Row]) -> str:
    return ", ".join(str(row["seed"]) for row in group)


def _widths(rows: Sequence[Row], untrained: bool) -> list[int]:
    """Return the widths that were trained by any variant, or not by any, widest first."""
    found = {
        pair["bits"][0]
        for row in rows
        for pair in row["pairs"].values()
        if ("zero_shot" in pair) == untrained
    }
    return sorted(found, reverse=True)


def _cell(group: Sequence[Row], width: int, untrained: bool) -> str:
    """Return the mean of a precision; of untrained ones also the mean above the line."""
    name = f"w{width}a{width}"
    found = [row["pairs"] for row in group if name in row["pairs"]]
    found = [pairs for pairs in found if ("zero_shot" in pairs[name]) == untrained]
    if not found:
        return ""
    mark = "*" if found[0][name]["where"] == "torch" else ""
    shown = _mean([pairs[name]["accuracy"] for pairs in found]) + mark
    if not untrained:
        return shown
    return f"{shown} ({fmean(_above(pairs, name) for pairs in found):+.2f})"


def _above(pairs: Mapping[str, Any], name: str) -> float:
    """Return how far a precision is above the line between its trained neighbours, points."""
    pair = pairs[name]
    low, high = pair["zero_shot"]["weights"]
    below, above = (pairs[f"w{b}a{b}"]["accuracy"] for b in (low, high))
    share = (pair["bits"][0] - low) / (high - low)
    accuracy: float = pair["accuracy"]
    return accuracy - ((1 - share) * below + share * above)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
