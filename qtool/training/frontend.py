"""Training methods by name: each turns a recipe and data into a run directory.

A frontend is a module with three functions, and what a user may do after the first::

    NEXT                                                          "qtool export {run} ..."
    check(config, data)                                           refuses, and writes nothing
    train(run, data, progress, resume) -> table or None           leaves model.safetensors
    search_start(run, model)                                      model at the run's weights

Its settings are a class in `qtool.settings.registry.CONFIGS`.
"""

from importlib import import_module
from typing import Any

from qtool.core.errors import unknown_name

FRONTENDS = {
    "metamix": "qtool.frontends.metamix.frontend",
    "ptq": "qtool.frontends.ptq.frontend",
    "qat": "qtool.frontends.qat",
}


def load_frontend(name: str) -> Any:
    """Return the module of frontend `name`."""
    if name not in FRONTENDS:
        raise unknown_name("frontend", name, FRONTENDS)
    return import_module(FRONTENDS[name])
