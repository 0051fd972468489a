"""``qtool check`` and ``qtool bops``: what deployed files and networks are."""

from collections.abc import Sequence
from pathlib import Path

import click

from qtool.cli.options import FILE, FOLDER, NUMBER, data_option
from qtool.cli.session import progress_shown, show
from runtimes.registry import PROVIDERS, RUNTIMES


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@data_option
@click.option("--dataset", metavar="NAME", help="For files that name none, such as imported.")
@click.option(
    "--bits", metavar="w4a4,...", help="Of a file of several pairs, these; all without it."
)
@click.option("--runtime", metavar="NAMES", help=f"Comma-separated: {','.join(RUNTIMES)}.")
@click.option(
    "--ort-provider", type=click.Choice([*PROVIDERS]), multiple=True,
    help="Also ONNX Runtime on a GPU; can be repeated.",
)  # fmt: skip
@click.option("--reference", type=FOLDER, metavar="RUN", help="Also run RUN's torch models.")
@click.option(
    "--original", type=click.Path(path_type=Path), metavar="FILE|RUN",
    help="Compare every tensor with the imported FILE or with RUN's torch networks.",
)  # fmt: skip
@click.option("--min-accuracy", type=NUMBER, metavar="P", help="Required top-1 in percent.")
@click.option("--max-bops", metavar="B", help="Required BOPs: 5.3G, 300M, 1.2e9.")
@click.option("--require-parity", is_flag=True, help="Require 0 differing integers.")
@click.option(
    "--require-original", is_flag=True, help="Require what import and export require of it."
)
@click.option(
    "--min-snr", type=NUMBER, metavar="DB",
    help="Required signal-to-noise ratio of the output against --original.",
)  # fmt: skip
@click.option("--json", "output", type=FILE, help="Write the report.")
@click.option("--force", is_flag=True, help="Replace the report in --json.")
def check(
    files: Sequence[Path], data: Path | str | None, dataset: str | None, bits: str | None,
    runtime: str | None, ort_provider: Sequence[str], reference: Path | None,
    original: Path | None, min_accuracy: float | None, max_bops: str | None,
    require_parity: bool, require_original: bool, min_snr: float | None,
    output: Path | None, force: bool,
) -> None:  # fmt: skip
    """Run deployed FILES and report accuracy, parity, cost, integer coverage and latency.

    Files that name no data set run on random inputs, without accuracy. --reference gives the
    accuracy of RUN's networks on the whole test set, --original compares tensors of a few
    images; both add the float network's latency.
    Exits with 1 when a required bar is missed.
    """
    from qtool.checking.bars import Bars, require
    from qtool.checking.check import check as run_check
    from qtool.core.cost import parse_count
    from qtool.core.files import refuse_existing, write_json
    from qtool.report.table import check_table

    if output is not None:
        refuse_existing(output, force)
    limit = None if max_bops is None else parse_count(max_bops)
    names = runtime.split(",") if runtime else None
    with progress_shown() as progress:
        records = run_check(
            files, data, names, reference, progress, dataset, original, pairs=bits,
            beside=[PROVIDERS[name] for name in ort_provider],
        )  # fmt: skip
    if output is not None:
        contents = [record.to_json() for record in records]
        write_json(output, contents[0] if len(contents) == 1 else {"models": contents})
    for record in records:
        show(check_table(record))
    require(records, Bars(min_accuracy, limit, require_parity, require_original, min_snr))


@click.command()
@click.argument("model")
@click.option(
    "--bits", metavar="FILE|w4a4[,LAYER=w8a8,...]",
    help="Bits of the layers, 32 without it; or the pair, of a file of several.",
)  # fmt: skip
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

    from qtool.checking.count import count, count_text, describe_count

    costs, title = count(model, bits, first_last, shape)
    if as_json:
        click.echo(json.dumps({"model": model, **describe_count(costs)}, indent=2))
    else:
        click.echo(f"{title}: {count_text(costs)}")
