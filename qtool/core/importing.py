"""What a user names as ``package.module:attribute``.

The current directory is importable, as it is for ``python -m``.
"""

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from qtool.core.errors import UserError


def import_callable(what: str, name: str) -> Callable[..., Any]:
    """Return the function or class `name`.

    Args:
        what: begins every message, such as "model mynet:net".
        name: ``package.module:attribute``.

    Raises:
        UserError: no such module or attribute, or the module fails.
    """
    path, _, attribute = name.partition(":")
    if not attribute or not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"{what}: expected package.module:factory")
    with current_folder():
        module = import_named(what, path)
    if not hasattr(module, attribute):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise no_such(what, f"module {path}", attribute, known)
    value: Callable[..., Any] = getattr(module, attribute)
    return value


@contextmanager
def current_folder() -> Iterator[None]:
    """Make modules in the current directory importable; a console script cannot see them."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def import_named(what: str, module: str) -> ModuleType:
    """Import `module` for `what`."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing != module and not module.startswith(f"{missing}."):
            reasons = f"{module} needs {missing}, which is not installed"
        else:
            reasons = (
                f"no module {missing} in the current directory or among installed packages"
            )
        raise UserError(f"{what}: {reasons}") from None
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(f"{what}: importing {module} failed: {reason(error)}") from error


def no_such(what: str, where: str, attribute: str, known: Iterable[str]) -> UserError:
    """Return the error for an attribute that `where` lacks, with the nearest known ones."""
    near = difflib.get_close_matches(attribute, known, n=3, cutoff=0.4)
    hint = f": did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"{what}: {where} has no {attribute!r}{hint}")


def reason(error: BaseException) -> str:
    """Return the error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
