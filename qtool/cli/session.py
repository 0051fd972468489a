"""What commands of the command line share while they run; torch is imported inside."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtool.core.progress import Progress
    from qtool.data.images import DataSet
    from qtool.settings.base import Config


@contextmanager
def progress_shown() -> Iterator["Progress"]:
    """Yield what shows progress; of the processes of a job, one does."""
    from qtool.core.progress import Silent, open_progress
    from qtool.parallel.job import current

    progress = open_progress() if current().is_main else Silent()
    try:
        yield progress
    finally:
        progress.close()


def load_data(config: "Config", folder: Path | str | None) -> "DataSet":
    """Return a recipe's data set; `folder` is the value of --data."""
    from qtool.data import load_dataset

    return load_dataset(config.dataset, folder, config.image_size, config.frames)


def show(renderable: Any) -> None:
    """Print a table, 100 columns wide where nobody looks."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(renderable, highlight=False)
