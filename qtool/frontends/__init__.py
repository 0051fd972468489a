"""Training methods by name: each turns a recipe and data into a run directory.

A frontend is a module with two functions::

    train(run, data, progress, resume)                                leaves model.safetensors
    search(run, data, budget, finetune, progress, resume) -> dict     leaves bits.json
"""

from importlib import import_module
from typing import Any

from qtool.errors import unknown_name

FRONTENDS = {"metamix": "qtool.frontends.metamix"}


def load_frontend(name: str) -> Any:
    """Return the module of frontend `name`."""
    if name not in FRONTENDS:
        raise unknown_name("frontend", name, FRONTENDS)
    return import_module(FRONTENDS[name])
