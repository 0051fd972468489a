"""The command line. Heavy imports live inside the commands, so that ``--help`` is instant."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

import qtool
from qtool.cli_analyse import analyse
from qtool.cli_list import list_
from qtool.cli_options import FILE, FOLDER, data_option, tvm_options
from qtool.cli_search import search
from qtool.cli_session import load_data, progress_shown, show
from qtool.errors import MissedBar, UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96})
@click.version_option(qtool.__version__, prog_name="qtool")
def cli() -> None:
    """Train, search, export and check convolutional networks for integer inference."""


@cli.command()
@click.argument("recipe")
@data_option
@click.option("--epochs", type=click.IntRange(0), help="Epochs of float pre-training.")
@click.option("--model", metavar="NAME", help="Another network; also package.module:factory.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a setting."
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@click.option("--force", is_flag=True, help="Replace the run in --out.")
@click.option("--out", type=FOLDER, required=True, help="Run directory to write.")
def train(
    recipe: str,
    data: Path | str | None,
    epochs: int | None,
    model: str | None,
    settings: Sequence[str],
    resume: bool,
    force: bool,
    out: Path,
) -> None:
    """Train RECIPE into a run directory (see `qtool list recipes`)."""
    from qtool.config import override
    from qtool.recipes import load_recipe

    if epochs is not None:
        settings = [*settings, f"float_epochs={epochs}"]
    if model is not None:
        settings = [*settings, f"model={model}"]
    if isinstance(data, str):
        settings = [*settings, f"dataset={data}"]
    config = override(load_recipe(recipe), settings)
    loaded = load_data(config, data)
    from qtool.frontends import load_frontend
    from qtool.run import Run
    from qtool.training.job import joined

    frontend = load_frontend(config.frontend)
    with joined() as job:
        frontend.check(config, loaded)
        run = Run.create(out, config, loaded, resume, force)
        with progress_shown() as progress:
            table = frontend.train(run, loaded, progress, resume)
    if job.is_main:
        if table is not None:
            show(table)
        click.echo(f"trained {config.name} -> {out}; next: {frontend.NEXT.format(run=out)}")


@cli.command()
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
    from qtool.pipeline import ExportOptions
    from qtool.pipeline import export as export_run
    from qtool.tvm_export import TvmOptions

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


@cli.command(name="import")
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
    from qtool.foreign_import import ImportOptions, import_file, parse_range
    from qtool.tvm_export import TvmOptions

    is_library = output is None or output.suffix in (".so", ".tar")
    chosen = target or ("tvm" if is_library else "onnx")
    span_or_none = None if span is None else parse_range(span)
    options = ImportOptions(chosen, form, span_or_none, allow_float, TvmOptions(**tvm))
    with progress_shown() as progress:
        notes = import_file(model, options, output, force, progress.note)
    for note in notes:
        click.echo(f"note: {note}")
    _written(output, tvm["emit_ir"])


@cli.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@data_option
@click.option("--dataset", metavar="NAME", help="For files that name none, such as imported.")
@click.option(
    "--runtime", metavar="NAMES", help="Comma-separated: reference,ort,tvm,openvino."
)
@click.option("--reference", type=FOLDER, metavar="RUN", help="Also run RUN's torch models.")
@click.option("--min-accuracy", type=float, metavar="P", help="Required top-1 in percent.")
@click.option("--max-bops", metavar="B", help="Required BOPs: 5.3G, 300M, 1.2e9.")
@click.option("--require-parity", is_flag=True, help="Require 0 differing integers.")
@click.option("--json", "output", type=FILE, help="Write the report.")
@click.option("--force", is_flag=True, help="Replace the report in --json.")
def check(
    files: Sequence[Path],
    data: Path | str | None,
    dataset: str | None,
    runtime: str | None,
    reference: Path | None,
    min_accuracy: float | None,
    max_bops: str | None,
    require_parity: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Run deployed FILES and report accuracy, parity, cost, integer coverage and latency.

    Files that name no data set run on random inputs, without accuracy.
    Exits with 1 when a required bar is missed.
    """
    from qtool.check import Bars, require
    from qtool.check import check as run_check
    from qtool.cost import parse_count
    from qtool.files import refuse_existing, write_json
    from qtool.report.table import check_table

    if output is not None:
        refuse_existing(output, force)
    limit = None if max_bops is None else parse_count(max_bops)
    names = runtime.split(",") if runtime else None
    with progress_shown() as progress:
        reports = run_check(files, data, names, reference, progress, dataset)
    if output is not None:
        write_json(output, reports[0] if len(reports) == 1 else {"models": reports})
    for report in reports:
        show(check_table(report))
    require(reports, Bars(min_accuracy, limit, require_parity))


@cli.command()
@click.argument("model")
@click.option(
    "--bits", metavar="FILE|w4a4[,LAYER=w8a8,...]", help="Bits of the layers; 32 without it."
)
@click.option(
    "--first-last", type=click.IntRange(1, 32), help="Bits of the first and last layer."
)
@click.option("--input", "shape", metavar="CxHxW", help="Image size, such as 3x224x224.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every layer.")
def bops(
    model: str, bits: str | None, first_last: int | None, shape: str | None, as_json: bool
) -> None:
    """Count the MACs and BOPs of MODEL (see `qtool list models`) or of a deployed file.

    BOPs = sum of MACs x weight bits x activation bits over convolution and linear layers.
    """
    import json

    from qtool.count import count, count_text, describe_count

    costs, title = count(model, bits, first_last, shape)
    if as_json:
        click.echo(json.dumps({"model": model, **describe_count(costs)}, indent=2))
    else:
        click.echo(f"{title}: {count_text(costs)}")


@cli.command()
@click.option("--out", type=FOLDER, default=Path("qtool-demo"), show_default=True)
@click.option("--force", is_flag=True, help="Replace an earlier demo in --out.")
def demo(out: Path, force: bool) -> None:
    """Run the whole chain on embedded images: train, search, export, check (minutes)."""
    from qtool.demo import run_demo

    with progress_shown() as progress:
        tables = run_demo(out, force, progress)
    for table in tables:
        show(table)
    click.echo(f"everything is in {out}")


cli.add_command(analyse)
cli.add_command(search)
cli.add_command(list_)


def main() -> None:
    """Run the command line; map errors to exit codes 1 (missed bar) and 2 (mistake)."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _fail(130, "interrupted; training commands continue with --resume")
    except click.ClickException as error:
        _fail(2, f"error: {error.format_message()}")
    except MissedBar as error:
        _fail(1, f"missed: {error}")
    except UserError as error:
        _fail(2, f"error: {error}", error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(2, f"error: {where}{error.strerror}")
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        if package not in _EXTRA_OF:
            raise
        _fail(
            2,
            f"error: this command needs {package}, not installed: "
            f"pip install 'qtool[{_EXTRA_OF[package]}]'",
        )
    from qtool.training.job import leave

    leave(0)


def _fail(code: int, text: str, error: Exception | None = None) -> NoReturn:
    """Exit with `code`; of the processes of a job, one says why."""
    from qtool.training.job import leave, speaks

    if speaks(error):
        click.echo(f"qtool: {text}", err=True)
    leave(code)
    sys.exit(code)


_EXTRA_OF = {
    "torch": "train", "onnxscript": "train", "safetensors": "train", "matplotlib": "report",
    "PIL": "train", "scipy": "train",
    "tvm": "tvm", "openvino": "openvino", "av": "video",
}  # fmt: skip
