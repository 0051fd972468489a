"""Post-training quantization of a CIFAR-10 ResNet at several bits, measured as deployed.

    python benchmarks/ptq_table.py --data DIR --weights FILE --json FILE

DIR holds CIFAR-10's binary files, FILE float weights that fit the recipe's network. Makes one
run, exports it at each of --bits, and checks every file on the whole test set: accuracy of the
float and the fake-quantized network in torch, of the integer file in ONNX Runtime, and in how
many integers ONNX Runtime differs from the numpy reference.
"""

import json
import platform
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from qtool.checking.check import check
from qtool.core.files import write_json
from qtool.core.progress import Progress, open_progress
from qtool.data import load_dataset
from qtool.export.export import ExportOptions, export
from qtool.frontends.ptq import frontend as ptq
from qtool.recipes import load_recipe
from qtool.runs.run import Run
from qtool.settings.override import override

_PACKAGES = ("torch", "onnxruntime", "onnx", "numpy")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder with CIFAR-10.")
@click.option("--weights", required=True, help="Float weights: .th, .pt, .safetensors, a run.")
@click.option("--recipe", default="ptq_resnet20_cifar", show_default=True)
@click.option("--bits", default="w8a8,w6a6,w4a8,w4a4", show_default=True)
@click.option("--runtime", default="reference,ort", show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers.")
def main(
    data: Path | None,
    weights: str,
    recipe: str,
    bits: str,
    runtime: str,
    output: Path | None,
) -> None:
    """Measure, print a Markdown table, and write the numbers as JSON."""
    progress = open_progress()
    with tempfile.TemporaryDirectory() as folder:
        seconds = _make_run(Path(folder), recipe, data, weights, progress)
        rows = [
            _measure(Path(folder), each, data, runtime.split(","), progress)
            for each in bits.split(",")
        ]
    progress.close()
    result = {
        "recipe": recipe,
        "ptq_seconds": round(seconds, 1),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in _PACKAGES},
        "rows": rows,
    }
    if output is not None:
        write_json(output, result)
    click.echo(markdown(rows))
    click.echo(json.dumps({key: value for key, value in result.items() if key != "rows"}))


def _make_run(
    folder: Path, recipe: str, data: Path | None, weights: str, progress: Progress
) -> float:
    """Quantize into `folder`/run; return seconds."""
    config = override(load_recipe(recipe), [f"weights={weights}"])
    loaded = load_dataset(config.dataset, data)
    ptq.check(config, loaded)
    began = time.monotonic()
    run = Run.create(folder / "run", config, loaded, resume=False, force=False)
    ptq.train(run, loaded, progress, resume=False)
    return time.monotonic() - began


def _measure(
    folder: Path, bits: str, data: Path | None, runtimes: Sequence[str], progress: Progress
) -> dict[str, Any]:
    """Export the run at `bits` and return what a check of the file says."""
    path = folder / f"{bits}.onnx"
    export(folder / "run", ExportOptions(bits=bits), path, force=False)
    (record,) = check([path], data, list(runtimes), folder / "run", progress)
    report = record.to_json()
    return {
        "bits": bits,
        **{
            key: report[key]
            for key in ("images", "accuracy", "parity", "bops", "weight_bytes", "file_bytes")
        },
        "float_ops": report["integer_coverage"]["float_ops"],
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of `rows`."""
    lines = [
        "| bits | fake-quantized | deployed (ONNX Runtime) | lost | integers that differ "
        "| file, bytes |",
        "|---|---|---|---|---|---|",
        f"| FP32 | {rows[0]['accuracy']['float']:.2f} % | | | | |",
    ]
    for row in rows:
        accuracy = row["accuracy"]
        parity = row["parity"].get("ort")
        differ = f"{parity['mismatched']:,} of {parity['compared']:,}" if parity else ""
        lines.append(
            f"| {row['bits'].upper()} | {accuracy['fake_quant']:.2f} % "
            f"| {accuracy['ort']:.2f} % | {accuracy['float'] - accuracy['ort']:.2f} "
            f"| {differ} | {row['file_bytes']:,} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
