"""Files that are either whole or absent: written under a temporary name, then renamed."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from qtool.core.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_existing(path: Path, force: bool) -> None:
    """Raise `UserError` if `path` exists and may not be replaced."""
    if path.exists() and not force:
        raise UserError(f"{path} exists already; nothing was written (--force replaces it)")


def refuse_directory(path: Path) -> None:
    """Raise `UserError` if `path`, a file to be written, is a directory."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; a file of that name is to be written")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed onto it when the block succeeds.

    The temporary name keeps the suffix, because some writers choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        with room_for(path):
            yield temporary
        # mkstemp makes files private; give the result the permissions of a plain open().
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn what a full disk raises into a `UserError` about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise no_room(path, str(error.strerror)) from None


def no_room(path: Path, reason: str) -> UserError:
    """Return the error of a `path` that could not be written for `reason`."""
    return UserError(
        f"{path} could not be written ({reason}); what was there is kept: make room, then "
        "repeat the command, training with --resume"
    )


def leftovers(path: Path) -> list[Path]:
    """Return the temporary files that killed writers of `path` left beside it."""
    found = path.parent.glob(f".{path.stem}-????????{path.suffix}")
    return [file for file in found if file.is_file()]


def link_or_copy(source: Path, target: Path) -> None:
    """Give the file `source` a second name, or copy it where the file system has no links.

    A file that is only ever replaced whole (`atomic_path`) may have several names.
    """
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """Give the file `path` back what it held, or that it was absent, if the block fails."""
    before = path.read_bytes() if path.exists() else None
    try:
        yield
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        elif path.read_bytes() != before:
            write_bytes(path, before)
        raise


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files: none takes its name before all of them are written."""
    for path in files:
        refuse_directory(path)
    with ExitStack() as stack:
        temporary = {path: stack.enter_context(atomic_path(path)) for path in files}
        for path, data in files.items():
            temporary[path].write_bytes(data)


def json_bytes(value: Any) -> bytes:
    """Return `value` as indented JSON."""
    return (json.dumps(value, indent=2) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_bytes(path, json_bytes(value))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the JSON object in `path`; `what` names it in the error."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{what} {path}: got a JSON {type(value).__name__}, expected an object"
        )
    return value
