"""One MEBQAT model at every pair of bits, beside networks trained for one pair each.

    python benchmarks/mebqat_table.py --data DIR --out DIR --json FILE [--seeds 0,1,2]
                                      [--pairs w2a2,w4a4,w7a5,w8a8] [--threads 1]
                                      [--recipe mebqat_mobilenet_v2_small_cifar]
                                      [--dedicated qat_mobilenet_v2_small_cifar]

For each seed: trains the float network once, as part of the first dedicated run; from its
weights the MEBQAT run and the other dedicated ones, for as many epochs each. Every run is
measured by `qtool eval`: the accuracy of the deployed integer file in ONNX Runtime wherever
both widths are at most 8, else of the network in torch, on the whole test set, and for MEBQAT
transductively too. What was interrupted goes on when the same command is repeated.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from deployed import qtool, train

from qtool.core.files import read_json, write_json
from qtool.core.pairs import width_name

_PATH = click.Path(path_type=Path)
_MEBQAT = "MEBQAT"


@click.command()
@click.option("--data", type=_PATH, help="Folder with the data set's files.")
@click.option("--out", type=_PATH, required=True, help="Folder of the runs.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--pairs", default="w8a8,w4a4,w2a2,w7a5", show_default=True)
@click.option("--recipe", default="mebqat_mobilenet_v2_small_cifar", show_default=True)
@click.option("--dedicated", default="qat_mobilenet_v2_small_cifar", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "output", type=_PATH, help="Add the rows to this file.")
def main(
    data: Path | None, out: Path, seeds: str, pairs: str, recipe: str, dedicated: str,
    threads: int, output: Path | None,
) -> None:  # fmt: skip
    """Train and evaluate; print Markdown tables."""
    source = () if data is None else ("--data", str(data))
    rows = [] if output is None or not output.exists() else read_json(output, "rows")["rows"]
    for seed in seeds.split(","):
        first, *others = (out / f"{pair}-{seed}" for pair in pairs.split(","))
        start = f"weights={first}"
        plans = [
            (first, dedicated, (f"bits={first.name.split('-')[0]}",)),
            (out / f"mebqat-{seed}", recipe, (start,)),
            *((run, dedicated, (f"bits={run.name.split('-')[0]}", start)) for run in others),
        ]
        for run, name, settings in plans:
            train(run, name, source, (f"seed={seed}", *settings), threads)
            row = _measured(run, name == recipe, source, threads)
            rows = [*(old for old in rows if _key(old) != _key(row)), row]
            if output is not None:
                write_json(output, {"rows": rows})
    click.echo("\n".join([*grid(rows), "", *compared(rows)]))


def _measured(
    run: Path, is_adaptive: bool, source: Sequence[str], threads: int
) -> dict[str, Any]:
    more = ("--transductive",) if is_adaptive else ()
    qtool(threads, "eval", run, *source, *more)
    recipe = read_json(run / "recipe.json", "recipe")["recipe"]
    found = read_json(run / "eval.json", "evaluation")
    method = _MEBQAT if is_adaptive else f"QAT {recipe['bits']}"
    return {
        "method": method, "seed": recipe["seed"], "recipe": recipe["name"],
        "epochs": recipe["epochs"], "pairs": found["pairs"], "savings": found["savings"],
    }  # fmt: skip


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["seed"], row["recipe"], row["epochs"]


def grid(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of MEBQAT's grid, means over the seeds; * where it is not deployed."""
    own = [row for row in rows if row["method"] == _MEBQAT]
    if not own:
        return
    pairs = [tuple(pair["bits"]) for pair in own[0]["pairs"].values()]
    weights, inputs = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    yield f"| weights | {' | '.join(f'a {width_name(a)}' for a in inputs)} |"
    yield "|---" * (1 + len(inputs)) + "|"
    for w in weights:
        cells = [_cell(own, (w, a)) if (w, a) in pairs else "" for a in inputs]
        yield f"| w {width_name(w)} | {' | '.join(cells)} |"
    mean = fmean(pair["accuracy"] for row in own for pair in row["pairs"].values())
    yield f"\nMean over the {len(pairs)} pairs and {len(own)} seeds: {mean:.2f} %."


def _cell(rows: Sequence[dict[str, Any]], bits: tuple[int, int]) -> str:
    found = [_pair(row, bits) for row in rows]
    mark = "*" if found[0]["where"] == "torch" else ""
    return f"{fmean(pair['accuracy'] for pair in found):.2f}{mark}"


def _pair(row: dict[str, Any], bits: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = next(
        pair for pair in row["pairs"].values() if tuple(pair["bits"]) == tuple(bits)
    )
    return found


def compared(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for every dedicated pair: both methods, seeds that have both."""
    yield "| bits | seeds | QAT for this pair | MEBQAT | difference | MEBQAT transductive |"
    yield "|---" * 6 + "|"
    own = {row["seed"]: row for row in rows if row["method"] == _MEBQAT}
    methods = dict.fromkeys(row["method"] for row in rows if row["method"] != _MEBQAT)
    for method in methods:
        both = [row for row in rows if row["method"] == method and row["seed"] in own]
        found = [(next(iter(row["pairs"].values())), own[row["seed"]]) for row in both]
        pairs = [(one, _pair(row, one["bits"])) for one, row in found if _has(row, one)]
        if not pairs:
            continue
        alone, together, batch = (
            fmean(values)
            for values in zip(
                *((a["accuracy"], b["accuracy"], b["transductive"]) for a, b in pairs),
                strict=True,
            )
        )
        seeds = ", ".join(str(row["seed"]) for row in both)
        yield (
            f"| {method.removeprefix('QAT ')} | {seeds} | {alone:.2f} | {together:.2f} "
            f"| {together - alone:+.2f} | {batch:.2f} |"
        )


def _has(row: dict[str, Any], pair: dict[str, Any]) -> bool:
    return any(tuple(p["bits"]) == tuple(pair["bits"]) for p in row["pairs"].values())


if __name__ == "__main__":
    main()
