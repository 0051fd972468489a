"""Quantization-aware training of a recipe at several bits, measured as deployed.

    python benchmarks/qat_table.py --data DIR --weights FILE --out DIR --json FILE
                                   [--recipe qat_resnet20_cifar] [--bits w4a4,w8a8]
                                   [--set epochs=8 ...] [--threads 2]

For each of --bits: trains into a run directory in --out, exports, and checks the file on the
whole test set, by the commands `qtool train`, `export` and `check`: accuracy of the float and
of the fake-quantized network in torch, of the integer file in ONNX Runtime, and in how many
integers that differs from the numpy reference. What was interrupted goes on when the same
command is repeated; what is complete is only measured again. A row is added to --json, in
place of an earlier one of the same settings.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from deployed import differing, measure, qtool

from qtool.core.files import read_json, write_json

_PATH = click.Path(path_type=Path)
# Rows that agree in these are of the same training.
_KEY = ("recipe", "bits", "settings", "threads")


@click.command()
@click.option("--data", type=_PATH, help="Folder with the data set's files.")
@click.option("--weights", default="", help="Float weights: .th, .pt, .safetensors, a run.")
@click.option("--out", type=_PATH, required=True, help="Folder of the runs.")
@click.option("--recipe", default="qat_resnet20_cifar", show_default=True)
@click.option("--bits", default="w4a4,w8a8", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
@click.option("--threads", default=2, show_default=True)
@click.option("--runtime", default="reference,ort", show_default=True)
@click.option("--json", "output", type=_PATH, help="Add the rows to this file.")
def main(
    data: Path | None, weights: str, out: Path, recipe: str, bits: str,
    settings: tuple[str, ...], threads: int, runtime: str, output: Path | None,
) -> None:  # fmt: skip
    """Train, export, check; print a Markdown table."""
    source = () if data is None else ("--data", str(data))
    rows = [] if output is None or not output.exists() else read_json(output, "rows")["rows"]
    for each in bits.split(","):
        run = out / "-".join((recipe, each, *settings)).replace("/", "_")
        chosen = (f"bits={each}", *([f"weights={weights}"] if weights else []), *settings)
        known = {
            "recipe": recipe,
            "bits": each,
            "settings": list(settings),
            "threads": threads,
        }
        minutes = _train(run, recipe, source, chosen, threads)
        row = {**known, "minutes": minutes, **measure(run, source, runtime, threads)}
        rows = [*(old for old in rows if any(old[k] != row[k] for k in _KEY)), row]
        if output is not None:
            write_json(output, {"rows": rows})
    click.echo("\n".join(markdown(rows)))


def _train(
    run: Path, recipe: str, source: Sequence[str], settings: Iterable[str], threads: int
) -> float:
    """Train, or go on; return the minutes that this took in all commands so far."""
    spent = run / "minutes.json"
    before = read_json(spent, "minutes")["minutes"] if spent.exists() else 0.0
    if (run / "model.safetensors").exists():
        return float(before)
    words = (word for each in settings for word in ("--set", each))
    began = time.monotonic()
    try:
        qtool(threads, "train", recipe, *source, "--out", run, *words, "--resume")
    finally:
        minutes = before + (time.monotonic() - began) / 60
        if run.is_dir():
            write_json(spent, {"minutes": minutes})
    return float(minutes)


def markdown(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield (
        "| bits | epochs | seed | float | fake-quantized | deployed (ONNX Runtime) | lost "
        "| integers that differ | file, bytes | minutes, threads |"
    )
    yield "|---" * 10 + "|"
    for row in rows:
        accuracy, parity = row["accuracy"], row["parity"]
        cells = [
            row["bits"].upper(), f"{row['epochs']}", f"{row['seed']}",
            f"{accuracy['float']:.2f} %", f"{accuracy['fake_quant']:.2f} %",
            f"{accuracy['ort']:.2f} %", f"{accuracy['float'] - accuracy['ort']:.2f}",
            differing(parity), f"{row['file_bytes']:,}",
            f"{row['minutes']:.0f}, {row['threads']}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
