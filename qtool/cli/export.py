"""``qtool export`` and ``qtool import``: integer models as files."""

from pathlib import Path
from typing import Any

import click

from qtool.cli.options import FILE, FOLDER, tvm_options
from qtool.cli.session import progress_shown


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--target", type=click.Choice(["onnx", "tvm"]), required=True)
@click.option(
    "--bits", metavar="FILE|w4a4[,LAYER=w8a8,...]", help="Other bits than the run's own."
)
@click.option(
    "--format", "form", type=click.Choice(["qdq", "qop"]), default="qdq", show_default=True,
    help="ONNX flavour: DQ/Q pairs, which every runtime reads, or QLinear operators.",
)  # fmt: skip
@click.option(
    "--input", "kind", type=click.Choice(["float", "uint8"]), default="float",
    show_default=True, help="What the model takes: pixel / 255, or raw uint8 pixels.",
)  # fmt: skip
@click.option(
    "--allow-float", is_flag=True,
    help="Keep what has no integer form in floating point, as islands between DQ and Q.",
)  # fmt: skip
@tvm_options
@click.option("--force", is_flag=True, help="Replace the output files.")
@click.option(
    "-o", "--output", type=FILE,
    help="An .onnx or .so file, or .tar: object files. Not needed with --emit-ir.",
)  # fmt: skip
def export(
    run: Path, target: str, bits: str | None, form: str, kind: str, allow_float: bool,
    force: bool, output: Path | None, **tvm: Any,
) -> None:  # fmt: skip
    """Export RUN as an integer model: ONNX file, or TVM shared library with its .json."""
    from passes.emit.tvm.target import TvmOptions
    from qtool.export.export import ExportOptions
    from qtool.export.export import export as export_run

    options = ExportOptions(
        target, bits, form, kind == "uint8", allow_float, TvmOptions(**tvm)
    )
    with progress_shown() as progress:
        export_run(run, options, output, force, progress.note)
    _written(output, tvm["emit_ir"])


def _written(*paths: Path | None) -> None:
    for path in paths:
        if path is not None:
            click.echo(f"{path}: {path.stat().st_size:,} bytes")


@click.command(name="import")
@click.argument("model", type=FILE)
@click.option(
    "-o", "--output", type=FILE,
    help="An .onnx or .so file, or .tar: object files. Not needed with --emit-ir.",
)  # fmt: skip
@click.option(
    "--target", type=click.Choice(["onnx", "tvm"]), help="By default as --output ends."
)
@click.option(
    "--format", "form", type=click.Choice(["qdq", "qop"]), default="qdq", show_default=True,
    help="Of an ONNX file: QuantizeLinear and DequantizeLinear, or QLinear operators.",
)  # fmt: skip
@click.option(
    "--output-range", "span", metavar="LO,HI",
    help="Values of an output that the file leaves in float: it gets an 8-bit grid.",
)  # fmt: skip
@click.option(
    "--allow-float", is_flag=True,
    help="Keep what has no integer form in floating point, as islands between DQ and Q.",
)  # fmt: skip
@tvm_options
@click.option("--force", is_flag=True, help="Replace the output files.")
def import_(
    model: Path, output: Path | None, target: str | None, form: str, span: str | None,
    allow_float: bool, force: bool, **tvm: Any,
) -> None:  # fmt: skip
    """Take MODEL, a quantized ONNX file of another tool, into integers.

    QDQ or QLinear form, as ONNX Runtime, NNCF, Brevitas and AIMET write it.
    """
    from passes.emit.tvm.target import TvmOptions
    from qtool.export.foreign_import import ImportOptions, import_file, parse_range

    is_library = output is None or output.suffix in (".so", ".tar")
    chosen = target or ("tvm" if is_library else "onnx")
    span_or_none = None if span is None else parse_range(span)
    options = ImportOptions(chosen, form, span_or_none, allow_float, TvmOptions(**tvm))
    with progress_shown() as progress:
        notes = import_file(model, options, output, force, progress.note)
    for note in notes:
        click.echo(f"note: {note}")
    _written(output, tvm["emit_ir"])
