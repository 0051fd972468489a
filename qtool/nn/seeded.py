"""Random numbers from a seed that leave everybody else's alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within this context torch draws from `seed`; afterwards goes on as if nothing had been.

    For what can only draw from the global generators: initialising a network, Dropout.
    """
    # Without a GPU in use there are none.
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = range(torch.cuda.device_count()) if used else ()
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield
