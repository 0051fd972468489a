"""Few-shot runs on episodes of new classes, at several pairs of bits, as one table.

    python benchmarks/fewshot_table.py --data DIR --json FILE [--bits w8a3,w4a4,w2a2,fp]
                                       [--episodes 600] [--threads 1] RUN RUN ...

Each RUN is measured by `qtool eval`, with the statistics that are deployed and transductively;
what its eval.json knows of these episodes is not measured again. Runs that differ in nothing
but the seed are one row: the mean over the seeds of the accuracy, with the mean of the half
95 % intervals over episodes, and the number of seeds. In brackets: transductive.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from deployed import qtool

from qtool.core.files import read_json, write_json

_PATH = click.Path(path_type=Path)
_NAMES = {"mebqat_pn": ("MEBQAT-PN", "PN"), "mebqat_maml": ("MEBQAT-MAML", "FOMAML")}
_LOOPS = {"bits": "", "joint": ", jointly-varying inner loop", "none": ", no inner loop"}
# What a run's row is called by, beside its method.
_SETTINGS = ("dataset", "model", "ways", "shots", "queries", "tasks", "epochs", "episodes",
             "lr", "shared_steps")  # fmt: skip


@click.command()
@click.argument("runs", nargs=-1, type=_PATH, required=True)
@click.option("--data", type=_PATH, help="Folder with the data set's files.")
@click.option("--bits", default="w8a3,w4a4,w2a2,fp", show_default=True)
@click.option("--episodes", default=600, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "output", type=_PATH, help="Write the rows to this file.")
def main(
    runs: tuple[Path, ...], data: Path | None, bits: str, episodes: int, threads: int,
    output: Path | None,
) -> None:  # fmt: skip
    """Evaluate the runs; print a Markdown table."""
    source = () if data is None else ("--data", str(data))
    for run in runs:
        options = ("--bits", bits, "--episodes", episodes, "--transductive", "--force")
        qtool(threads, "eval", run, *source, *options)
    rows = [row_of(run) for run in runs]
    if output is not None:
        write_json(output, {"rows": rows})
    click.echo("\n".join(markdown(rows, bits.split(","))))


def row_of(run: Path) -> dict[str, Any]:
    """Return what was found of a run, and what it is."""
    recipe = read_json(run / "recipe.json", "recipe")["recipe"]
    found = read_json(run / "eval.json", "evaluation")
    return {
        "method": method(recipe),
        "seed": recipe["seed"],
        **{name: recipe[name] for name in _SETTINGS},
        "task": found["question"]["task"],
        "test_episodes": found["question"]["episodes"],
        "pairs": found["pairs"],
    }


def method(recipe: dict[str, Any]) -> str:
    """Return how papers call what a recipe trains."""
    adaptive, plain = _NAMES[recipe["frontend"]]
    if not recipe["bits"]:
        return adaptive + _LOOPS[recipe.get("inner_loop", "bits")]
    return plain if recipe["bits"] == "fp" else f"{plain} + QAT {recipe['bits']}"


def markdown(rows: Sequence[dict[str, Any]], pairs: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table: a line for all seeds of a method."""
    yield f"| method | task | seeds | steps | {' | '.join(pairs)} |"
    yield "|---" * (4 + len(pairs)) + "|"
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["method"], row["task"], *(row[name] for name in _SETTINGS))
        groups.setdefault(key, []).append(row)
    for same in groups.values():
        first = same[0]
        seeds = ", ".join(str(row["seed"]) for row in same)
        steps = first["epochs"] * first["episodes"]
        cells = [first["method"], first["task"], seeds, f"{steps:,}"]
        cells += [_cell([row["pairs"][pair] for row in same]) for pair in pairs]
        yield f"| {' | '.join(cells)} |"


def _cell(found: Sequence[dict[str, Any]]) -> str:
    """Return the means over the seeds."""
    mean, width, own = (
        fmean(pair[name] for pair in found)
        for name in ("accuracy", "interval", "transductive")
    )
    return f"{mean:.2f} ± {width:.2f} ({own:.2f})"


if __name__ == "__main__":
    main()
