"""The folder of what can be made again: compiled libraries, environments of their own.

``$QTOOL_CACHE``, else ``$XDG_CACHE_HOME/qtool`` or ``~/.cache/qtool``: a folder that only its
owner may write, because code is loaded from it.
"""

import os
from pathlib import Path

from qtool.core.errors import UserError


def cache_folder() -> Path:
    """Return the cache folder, made if it is not there.

    Raises:
        UserError: it cannot be made, or others may write into it.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qtool"
    folder = Path(os.environ.get("QTOOL_CACHE") or base)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError as error:
        raise UserError(
            f"cache folder {folder}: {error.strerror}; set QTOOL_CACHE to a folder of your own"
        ) from None
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise UserError(
            f"cache folder {folder} can be written by others, and code is loaded from it: "
            "chmod go-w it, or set QTOOL_CACHE to a folder of your own"
        )
    return folder
