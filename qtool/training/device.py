"""Where training runs, and that it gives the same bits every time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qtool.core.errors import UserError
from qtool.parallel.job import current
from qtool.settings.base import TrainConfig


def training_device(config: TrainConfig) -> torch.device:
    """Return where the recipe trains.

    Raises:
        UserError: it asks for a GPU that is not there.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise UserError(
            "recipe setting device: got cuda, but torch finds no GPU; use auto or cpu"
        )
    if config.device == "cpu" or not has_gpu:
        return torch.device("cpu")
    return torch.device("cuda", current().local_rank)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Choose deterministic algorithms; where an operator has none, torch warns."""
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic  # a module with a property
    fill = memory.fill_uninitialized_memory
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill
