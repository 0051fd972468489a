"""The processes of one training job, as torchrun starts them; a job of one process otherwise.

    torchrun --nproc-per-node N -m qtool train RECIPE --out RUN

Every process runs the same command on its share of each batch. The first one alone writes
files and shows progress; all of them read the run directory, so on several machines it must be
on a file system that they share. Importing this module does not import torch.
"""

import os
import sys
from dataclasses import dataclass
from typing import TypeVar

from qtool.core.errors import UserError

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


def has_joined() -> bool:
    """True between `enter` and `leave_current`."""
    return bool(_joined)


def enter(job: Job) -> None:
    """Say that this process is connected to the others of `job`."""
    _connected.append(True)
    _joined.append(job)


def leave_current() -> None:
    """Say that the work of the joined job is over; its connections stay until `leave`."""
    _joined.pop()


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


def leave(code: int) -> None:
    """End this process with exit code `code` if it is one of a job; its connections stay."""
    if _connected:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def other_process_ended() -> ProcessError:
    """Return the error of a process whose job has lost another one."""
    return ProcessError(
        f"process {current().rank} of {current().size}: another process of the job ended; the "
        "last checkpoint is kept: repeat the command with --resume"
    )
