"""A run that is begun, and taken back where training fails with nothing to keep."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtool.core.files import leftovers
from qtool.data.images import DataSet
from qtool.parallel.job import current
from qtool.runs.run import CHECKPOINT, RUN_FILES, Run, require_apart
from qtool.runs.stage import Stage
from qtool.settings.base import Config


@contextmanager
def begun(
    folder: Path, config: Config, data: DataSet, resume: bool, force: bool, whole: bool = False
) -> Iterator[Run]:
    """Yield `Run.create` of the same arguments; a block that raises takes back what it began.

    That is where an `Exception` comes before any weights or checkpoint, which could be
    continued: the files of the run that were not there before are removed, and so are the
    directories made for them. The same command is then as good as the first time. Nothing is
    removed with `resume`, or when the user interrupts.

    Args:
        folder: of the run.
        config: its recipe.
        data: its images.
        resume: continue the run there.
        force: replace it.
        whole: nothing can be continued: an interrupted run is taken back too, with all it has.

    Raises:
        UserError: the recipe's weights, teacher or source are what would be replaced.
    """
    if force and not resume:
        require_apart(folder, config)
    files: set[Path] = set() if force else _files(folder)  # all of the old run goes
    folders = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        yield Run.create(folder, config, data, resume, force)
    except BaseException as error:
        fails = whole or (isinstance(error, Exception) and not _has_results(folder, config))
        if fails and not resume and current().is_main:
            _take_back(folder, files, folders)
        raise


def _has_results(folder: Path, config: Config) -> bool:
    """True where there is a checkpoint, or weights that are no copy of what was given."""
    is_copy = bool(getattr(config, "weights", ""))
    stages = [stage for stage in Stage if not (stage is Stage.FLOAT and is_copy)]
    names = (CHECKPOINT, *(stage.file for stage in stages))
    return any((folder / name).exists() for name in names)


def _files(folder: Path) -> set[Path]:
    """Return the files of a run, and unfinished ones, that are in `folder`."""
    paths = [folder / name for name in RUN_FILES]
    unfinished = (file for path in paths for file in leftovers(path))
    return {path for path in (*paths, *unfinished) if path.exists()}


def _take_back(folder: Path, files: set[Path], folders: list[Path]) -> None:
    """Remove the run's files but `files`, and of `folders` those that are empty then."""
    for path in _files(folder) - files:
        path.unlink(missing_ok=True)
    for made in folders:
        if made.is_dir() and not any(made.iterdir()):
            made.rmdir()
