"""Searched and uniform bits, measured as deployed, means over seeds.

    python benchmarks/search_table.py --data DIR --json FILE RUN [RUN...]

Exports every run (as `qtool train` with frontend qat, or `qtool search`, left it) and checks
the file on the whole test set: accuracy of the integer file in ONNX Runtime, and in how many
integers that differs from the numpy reference. Runs of equal network, method, settings and
budget are a row; they differ by their seeds. Epochs are those at the chosen bits. A budget's
"x" is its multiple of what 4-bit activations in all inner layers cost at the same weights.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from deployed import differing, measure

from qtool.core.cost import LayerCost, total_bops
from qtool.core.files import read_json, write_json
from qtool.core.selection import LayerBits

_PATH = click.Path(path_type=Path)
_SAME = (
    "model", "method", "weights", "budget_bops", "candidates", "fixed_meta_state",
    "finetune_epochs",
)  # fmt: skip
_COUNTS = ("mismatched", "compared")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=_PATH)
@click.option("--data", type=_PATH, help="Folder with the data set's files.")
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "output", type=_PATH, help="Write the rows.")
def main(runs: Sequence[Path], data: Path | None, threads: int, output: Path | None) -> None:
    """Export, check; print a Markdown table."""
    source = () if data is None else ("--data", str(data))
    rows = []
    for run in runs:
        rows.append({**_about(run), **measure(run, source, "reference,ort", threads)})
        if output is not None:
            write_json(output, {"rows": rows})
    click.echo("\n".join(markdown(rows)))


def _about(run: Path) -> dict[str, Any]:
    """Return what bits.json and the recipe say."""
    bits, recipe = read_json(run / "bits.json", "bits"), read_json(run / "recipe.json", "run")
    inner = list(bits["layers"].values())[1:-1]
    settings = recipe["recipe"]
    return {
        "run": run.name,
        "method": bits.get("method", "uniform" if len(set(map(tuple, inner))) == 1 else "qat"),
        "budget_bops": bits.get("budget_bops"),
        "uniform_bops": _uniform(bits, activation=4),
        "weights": sorted({pair[0] for pair in inner}, reverse=True),
        "activations": statistics.fmean(pair[1] for pair in inner),
        "repaired": len(bits.get("repaired", ())),
        "candidates": settings["activation_bits"],
        "fixed_meta_state": settings.get("fixed_meta_state"),
        "finetune_epochs": settings.get("finetune_epochs", settings.get("epochs")),
    }


def _uniform(bits: dict[str, Any], activation: int) -> int:
    """Return the BOPs with inner layers' inputs at `activation` bits."""
    pairs = dict(bits["layers"])
    for layer in list(pairs)[1:-1]:
        pairs[layer] = (pairs[layer][0], activation)
    macs = bits["layer_macs"]
    return total_bops(
        LayerCost(name, macs[name], LayerBits(*pair)) for name, pair in pairs.items()
    )


def markdown(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield (
        "| method | epochs | weights | mean input bits | MBOPs | budget | float "
        "| deployed, each seed | mean | integers that differ |"
    )
    yield "|---" * 10 + "|"
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str([row[key] for key in _SAME]), []).append(row)
    for group in groups.values():
        yield f"| {' | '.join(_cells(sorted(group, key=lambda row: row['seed'])))} |"


def _cells(group: Sequence[dict[str, Any]]) -> list[str]:
    first, deployed = group[0], [row["accuracy"]["ort"] for row in group]
    budget = first["budget_bops"]
    share = statistics.fmean(row["bops"] / (budget or row["bops"]) for row in group)
    return [
        _name(first),
        str(first["finetune_epochs"]),
        ", ".join(map(str, first["weights"])),
        f"{statistics.fmean(row['activations'] for row in group):.2f}",
        " ".join(f"{row['bops'] / 1e6:.1f}" for row in group),
        f"{100 * share:.1f} %" if budget else "",
        f"{first['accuracy']['float']:.2f} %",
        " ".join(f"{value:.2f}" for value in deployed),
        f"{statistics.fmean(deployed):.2f} %",
        differing({key: sum(row["parity"][key] for row in group) for key in _COUNTS}),
    ]


def _name(row: dict[str, Any]) -> str:
    if not row["budget_bops"]:
        return f"uniform A{row['activations']:g}" if row["method"] == "uniform" else "qat"
    fixed = "" if row["fixed_meta_state"] else ", meta-state not fixed"
    candidates = ",".join(map(str, row["candidates"]))
    share = row["budget_bops"] / row["uniform_bops"]
    return f"{row['method']}{fixed}, {candidates}, {share:.2f} x"


if __name__ == "__main__":
    main()
