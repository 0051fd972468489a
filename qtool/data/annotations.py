"""Annotation files: which one of a folder, and its lines."""

from collections.abc import Sequence
from pathlib import Path

from qtool.core.errors import UserError


def find_annotations(root: Path, pattern: str, words: Sequence[str], kind: str = "") -> Path:
    """Return the one file in `root` that fits `pattern` and has the first possible word.

    Args:
        root: folder of the data set; they can also be in its folder ``annotations``, or, as
            ``annotations.*``, in one of the name of the word.
        pattern: such as ``*.csv``.
        words: of which a name has one, in lower case; earlier ones are preferred.
        kind: what the name also has, where several are left without.

    Raises:
        UserError: no such file, or several.
    """
    paths = sorted(root.glob(pattern)) or sorted((root / "annotations").glob(pattern))
    files = [path for path in paths if "ytid" not in path.stem]
    for word in words:
        found = [path for path in files if word in path.stem.lower()]
        found = [path for path in found if kind in path.stem.lower()] or found
        found = found or sorted((root / word).glob(f"annotations{pattern[1:]}"))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"data folder {root}: several annotations {names}, expected one")
        if found:
            return found[0]
    wanted = " or ".join(pattern.replace("*", f"*{word}*") for word in words)
    there = ", ".join(path.name for path in files) or "none"
    raise UserError(f"data folder {root}: no annotations {wanted}; {pattern} there: {there}")


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a text file with their numbers, without empty ones and # comments.

    Raises:
        UserError: the file is missing or not text.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"annotations {path} are not readable text: {error}") from None
    stripped = ((number, text.strip()) for number, text in enumerate(lines, 1))
    return [(number, text) for number, text in stripped if text and text[0] != "#"]
