"""``qtool adapt``: a few-shot run learns a user's classes from a few images."""

from pathlib import Path

import click

from qtool.cli.options import FOLDER


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--support", type=FOLDER, required=True, metavar="DIR",
    help="Folder of a few images of each class: DIR/CLASS/*.",
)  # fmt: skip
@click.option("--bits", required=True, metavar="w4a4", help="The pair to adapt to.")
@click.option("-o", "--out", type=FOLDER, required=True, help="Run directory to write.")
@click.option("--force", is_flag=True, help="Replace the run in --out.")
def adapt(run: Path, support: Path, bits: str, out: Path, force: bool) -> None:
    """Teach RUN, of a few-shot frontend, the classes in a folder, at one pair of bits.

    MEBQAT-PN computes the classes' prototypes at these bits, and puts them behind the
    embedding as a layer; MEBQAT-MAML fine-tunes at these bits. The result is a run to export
    and check.
    """
    from qtool.frontends.mebqat.adapt import adapt as adapt_run
    from qtool.runs.run import Run

    told = adapt_run(Run.open(run), support, bits, out, force)
    click.echo(f"adapted {run} -> {out}: {told}")
    click.echo(f"next: qtool export {out} --target onnx -o model.onnx")
