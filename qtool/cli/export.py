"""``qtool export`` and ``qtool import``: integer models as files."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from passes.emit.base import Inspect
from passes.emit.registry import TARGETS, make_target, target_for
from qtool.cli.calibration import calibrated
from qtool.cli.options import (
    FILE,
    FOLDER,
    calibration_option,
    output_option,
    target_options,
    witness_options,
)
from qtool.cli.session import progress_shown


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--target", type=click.Choice(list(TARGETS)), required=True)
@click.option(
    "--bits", metavar="FILE|w4a4[,LAYER=w8a8,...]|all",
    help="Other bits than the run's own. Several pairs, w8a8,w4a4 or all, go into a folder, "
    "their weights once.",
)  # fmt: skip
@click.option(
    "--input", "kind", type=click.Choice(["float", "uint8"]), default="float",
    show_default=True, help="What the model takes: pixel / 255, or raw uint8 pixels.",
)  # fmt: skip
@click.option(
    "--allow-float", is_flag=True,
    help="Keep what has no integer form in floating point, as islands between DQ and Q.",
)  # fmt: skip
@calibration_option
@target_options
@witness_options
@click.option("--force", is_flag=True, help="Replace the output files.")
@output_option
def export(
    run: Path, target: str, bits: str | None, kind: str, allow_float: bool, force: bool,
    output: Path | None, no_witness: bool, accept: bool, images: int,
    data: Path | str | None, calibration: Path | str | None, **given: Any,
) -> None:  # fmt: skip
    """Export RUN as an integer model (see `qtool list targets`).

    What is to be written is compared with RUN's torch networks on a few images: with its
    quantizers every integer, in floating point every layer. Differences are refused.
    """
    from qtool.export.export import ExportOptions
    from qtool.export.export import export as export_run
    from qtool.export.export_pairs import export_pairs, names_pairs
    from qtool.witness.images import Asked
    from qtool.witness.witness import witness_of_run

    made, told = make_target(target, given), list[str]()
    options = ExportOptions(made, bits, kind == "uint8", allow_float)

    def witness_at(pair: str | None) -> Inspect:
        at, where = replace(options, bits=pair), "" if pair == bits else f"{pair}: "
        asked = Asked(data, images=images)
        return witness_of_run(run, at, asked, lambda t: told.append(where + t), accept)

    if no_witness:
        told.append("no witness: nothing is compared with the run's network")
    at = None if no_witness else witness_at
    if not names_pairs(bits):
        made.check(output, force)
    with progress_shown() as progress, calibrated(run, options, calibration, progress.note):
        if names_pairs(bits):
            files = export_pairs(run, options, output, force, progress.note, at)
        else:
            export_run(run, options, output, force, progress.note, at and at(bits))
            files = made.files(output)
        for text in told:
            progress.note(text)
    _written(files)


def _written(files: Iterable[Path]) -> None:
    for path in files:
        click.echo(f"{path}: {path.stat().st_size:,} bytes")


@click.command(name="import")
@click.argument("model", type=FILE)
@output_option
@click.option(
    "--target", type=click.Choice(list(TARGETS)), help="By default as --output ends."
)
@click.option(
    "--output-range", "span", metavar="LO,HI",
    help="Values of an output that the file leaves in float: it gets an 8-bit grid.",
)  # fmt: skip
@click.option(
    "--allow-float", is_flag=True,
    help="Keep what has no integer form in floating point, as islands between DQ and Q.",
)  # fmt: skip
@target_options
@witness_options
@click.option("--force", is_flag=True, help="Replace the output files.")
def import_(
    model: Path, output: Path | None, target: str | None, span: str | None,
    allow_float: bool, force: bool, no_witness: bool, accept: bool, images: int,
    data: Path | str | None, **given: Any,
) -> None:  # fmt: skip
    """Take MODEL, a quantized ONNX file of another tool, into integers.

    QDQ or QLinear form, as ONNX Runtime, NNCF, Brevitas and AIMET write it. What is to be
    written is compared with MODEL in ONNX Runtime, every tensor, on a few inputs: random ones,
    or images of --data. Differences beyond rounding are refused.
    """
    from qtool.export.foreign_import import ImportOptions, import_file, parse_range
    from qtool.witness.images import Asked
    from qtool.witness.witness import witness_of_file

    made = make_target(target or target_for(output, given), given)
    span_or_none = None if span is None else parse_range(span)
    options = ImportOptions(made, span_or_none, allow_float)
    with progress_shown() as progress:
        inspect, told = None, list[str]()
        if no_witness:
            told.append(f"no witness: nothing is compared with {model}")
        else:
            asked = Asked(data, images=images)
            inspect = witness_of_file(model, options, asked, told.append, accept)
        notes = import_file(model, options, output, force, progress.note, inspect)
        for text in told:
            progress.note(text)
    for note in notes:
        click.echo(f"note: {note}")
    _written(made.files(output))
