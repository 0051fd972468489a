"""Training methods by name: each turns a recipe and data into a run directory.

A frontend is a module with three functions, and what a user may do after the first::

    NEXT                                                          "qtool export {run} ..."
    check(config, data)                                           refuses, and writes nothing
    train(run, data, progress, resume) -> table or None           leaves model.safetensors
    search(run, data, request, progress) -> list of dicts         leaves bits.json

Its settings are a class in `qtool.config.CONFIGS`.
"""

from importlib import import_module
from typing import Any

from qtool.errors import unknown_name

FRONTENDS = {
    "metamix": "qtool.frontends.metamix",
    "ptq": "qtool.frontends.ptq",
    "qat": "qtool.frontends.qat",
}


def load_frontend(name: str) -> Any:
    """Return the module of frontend `name`."""
    if name not in FRONTENDS:
        raise unknown_name("frontend", name, FRONTENDS)
    return import_module(FRONTENDS[name])
