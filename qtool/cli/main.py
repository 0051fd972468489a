"""The command line. Heavy imports live inside the commands, so that ``--help`` is instant."""

import sys
from typing import NoReturn

import click

import qtool
from qtool.cli.adapt import adapt
from qtool.cli.analyse import analyse
from qtool.cli.check import bops, check
from qtool.cli.demo import demo
from qtool.cli.eval import eval_
from qtool.cli.export import export, import_
from qtool.cli.list import list_
from qtool.cli.search import search
from qtool.cli.setup import setup
from qtool.cli.train import train
from qtool.core.errors import MissedBar, UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96})
@click.version_option(qtool.__version__, prog_name="qtool")
def cli() -> None:
    """Train, search, export and check convolutional networks for integer inference."""


_COMMANDS = (
    train, search, eval_, adapt, export, import_, check, bops, demo, analyse, list_,
    setup,
)  # fmt: skip
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line; map errors to exit codes 1 (missed bar) and 2 (mistake)."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _fail(
            130,
            "interrupted; train and search continue with --resume, eval when it is repeated; "
            "any other command starts anew",
        )
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
    from qtool.parallel.job import leave

    leave(0)


def _fail(code: int, text: str, error: Exception | None = None) -> NoReturn:
    """Exit with `code`; of the processes of a job, one says why."""
    from qtool.parallel.job import leave, speaks

    if speaks(error):
        click.echo(f"qtool: {text}", err=True)
    leave(code)
    sys.exit(code)


_EXTRA_OF = {
    "torch": "train", "onnxscript": "train", "safetensors": "train", "matplotlib": "report",
    "PIL": "train", "scipy": "train",
    "tvm": "tvm", "openvino": "openvino", "av": "video",
}  # fmt: skip
