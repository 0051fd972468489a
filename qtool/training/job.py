"""The processes of one training job, as torchrun starts them; a job of one process otherwise.

    torchrun --nproc-per-node N -m qtool train RECIPE --out RUN

Every process runs the same command on its share of each batch. The first one alone writes
files and shows progress; all of them read the run directory, so on several machines it must be
on a file system that they share. Importing this module does not import torch.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from qtool.errors import UserError

ResultT = TypeVar("ResultT")


class ProcessError(UserError):
    """What only some processes of a job see: each of them says so, not only the first."""


@dataclass(frozen=True)
class Job:
    """This process, among `size`.

    Args:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0


_joined: list[Job] = []
_connected: list[bool] = []


def current() -> Job:
    """Return the job that was joined, or the one of this process alone."""
    return _joined[-1] if _joined else Job()


def announced() -> Job:
    """Return the job that the environment describes.

    Raises:
        UserError: the variables that torchrun sets are no numbers.
    """
    names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
    try:
        found = {key: int(os.environ[name]) for key, name in names.items()}
    except KeyError:
        return Job()
    except ValueError as error:
        raise UserError(f"environment of torchrun: {error}") from None
    return Job(**found) if found["size"] > 1 else Job()


def speaks(error: Exception | None) -> bool:
    """True if this process is to print `error`: mistakes that all see are printed once."""
    return isinstance(error, ProcessError) or os.environ.get("RANK", "0") == "0"


@contextmanager
def joined() -> Iterator[Job]:
    """Join the job that the environment describes, until the block ends.

    Once in a process's life, which `leave` then ends.

    Raises:
        ProcessError: another process ended early.
    """
    job = announced()
    if job.size == 1 or _joined:
        yield current()
        return
    from qtool.training import distributed

    before = signal.signal(signal.SIGTERM, _ended)
    distributed.start(job)
    _connected.append(True)
    _joined.append(job)
    try:
        yield job
        distributed.finish()
    except BaseException:
        # This process ends by its own error, not by torchrun's signal on the way out.
        before = signal.SIG_IGN
        raise
    finally:
        _joined.pop()
        signal.signal(signal.SIGTERM, before)


def leave(code: int) -> None:
    """End this process with exit code `code` if it is one of a job; its connections stay."""
    if _connected:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(*_: Any) -> None:
    """Turn torchrun's signal, sent when another process failed, into an error."""
    raise other_process_ended()


def other_process_ended() -> ProcessError:
    """Return the error of a process whose job has lost another one."""
    return ProcessError(
        f"process {current().rank} of {current().size}: another process of the job ended; the "
        "last checkpoint is kept: repeat the command with --resume"
    )


def on_main(action: Callable[[], ResultT]) -> ResultT | None:
    """Run `action` in the first process while the others wait; an error of it ends them all.

    Returns:
        What `action` does; None in the other processes.
    """
    if current().size == 1:
        return action()
    from qtool.training.distributed import any_process

    any_process(False)  # nobody is still reading what is about to be written
    result, failure = None, None
    if current().is_main:
        try:
            result = action()
        except Exception as error:
            failure = error
    if any_process(failure is not None):
        raise failure or UserError("the first process failed")
    return result
