"""What the processes of a job do together: joining it, and leaving work to the first one."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qtool.core.errors import UserError
from qtool.parallel.job import (
    Job,
    ResultT,
    announced,
    current,
    enter,
    has_joined,
    leave_current,
    other_process_ended,
)


@contextmanager
def joined() -> Iterator[Job]:
    """Join the job that the environment describes, until the block ends.

    Once in a process's life, which `leave` then ends.

    Raises:
        ProcessError: another process ended early.
    """
    job = announced()
    if job.size == 1 or has_joined():
        yield current()
        return
    from qtool.parallel import collectives

    before = signal.signal(signal.SIGTERM, _ended)
    collectives.start(job)
    enter(job)
    try:
        yield job
        collectives.finish()
    except BaseException:
        # This process ends by its own error, not by torchrun's signal on the way out.
        before = signal.SIG_IGN
        raise
    finally:
        leave_current()
        signal.signal(signal.SIGTERM, before)


def _ended(*_: Any) -> None:
    """Turn torchrun's signal, sent when another process failed, into an error."""
    raise other_process_ended()


def on_main(action: Callable[[], ResultT]) -> ResultT | None:
    """Run `action` in the first process while the others wait; an error of it ends them all.

    Returns:
        What `action` does; None in the other processes.
    """
    if current().size == 1:
        return action()
    from qtool.parallel.collectives import any_process

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
