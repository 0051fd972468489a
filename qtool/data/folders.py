"""Where a data set's files are: ``--data DIR``, else ``$QTOOL_DATA``."""

import os
from pathlib import Path

from qtool.core.errors import UserError


def data_folder(name: str, folder: Path | None, hint: str = "") -> Path:
    """Return the existing folder in which data set `name` is looked for.

    Args:
        name: data set, for the message.
        folder: value of ``--data``; it wins over the environment.
        hint: what else the user could do, put in brackets behind the message.
    """
    root = folder or (Path(os.environ["QTOOL_DATA"]) if os.environ.get("QTOOL_DATA") else None)
    if root is None:
        raise UserError(
            f"data set {name}: no folder given; pass --data DIR or set QTOOL_DATA{hint}"
        )
    if not root.is_dir():
        wrong = "is no folder" if root.exists() else "does not exist"
        raise UserError(f"data folder {root} {wrong}")
    return root


def nested_folder(root: Path, name: str) -> Path:
    """Accept the folder of the files, or its parent, where they are in folder `name`."""
    nested = root / name
    return nested if nested.is_dir() else root
