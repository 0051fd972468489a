"""What annotation files with class names share: numbering the classes, finding the videos."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from qtool.core.errors import UserError
from qtool.data.images import DataSet
from qtool.data.video import Clip, VideoSource, clip_shape, read_file

_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".ts", ".3gp"}


class NamedClips:
    """Clips of a split with their class names, as an annotation file lists them.

    Attributes:
        listed: annotation file.
        clips, names: what was found, in the file's order.
        absent: videos that were not found.
    """

    def __init__(self, listed: Path) -> None:
        self.listed = listed
        self.clips: list[Clip] = []
        self.names: list[str] = []
        self.absent: list[str] = []

    def add(self, stems: Iterable[str], videos: dict[str, str], clip: Clip, name: str) -> None:
        """Add `clip` of class `name`, in the first of `videos` that is named like `stems`."""
        for stem in stems:
            if stem in videos:
                self.clips.append(clip._replace(path=videos[stem]))
                self.names.append(name)
                return
        self.absent.append(clip.path)


def find_videos(root: Path) -> dict[str, str]:
    """Return the paths of all video files in `root` and below, by name without suffix."""
    found: dict[str, str] = {}
    for folder, inside, names in os.walk(root, followlinks=True):
        inside.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _SUFFIXES:
                found.setdefault(stem, os.path.join(folder, name))
    return found


def named_data_set(
    name: str, root: Path, train: NamedClips, test: NamedClips, image_size: int, frames: int
) -> DataSet:
    """Return the data set; classes are the training clips' names, sorted.

    Videos that `root` lacks are left out, with a warning: published sets consist of links, and
    some of them are dead.

    Raises:
        UserError: a split has no videos at all; a class that the training clips lack.
    """
    numbers = {label: number for number, label in enumerate(sorted(set(train.names)))}
    shape = clip_shape(image_size, frames)
    return DataSet(
        name,
        _source(name, root, train, numbers, shape),
        _source(name, root, test, numbers, shape),
        len(numbers),
    )


def _source(
    name: str, root: Path, part: NamedClips, numbers: dict[str, int], shape: tuple[int, int]
) -> VideoSource:
    _report_absent(name, root, part)
    _require_known(part, numbers)
    labels = np.array([numbers[label] for label in part.names], np.int64)
    return VideoSource(part.clips, labels, part.listed, read_file, *shape)


def _report_absent(name: str, root: Path, part: NamedClips) -> None:
    total = len(part.absent) + len(part.clips)
    if not part.clips:
        example = f", such as {part.absent[0]}" if part.absent else ""
        raise UserError(
            f"{name}: none of the {total} videos of {part.listed} is in {root}{example}"
        )
    if part.absent:
        warnings.warn(
            f"{name}: {len(part.absent)} of the {total} videos of {part.listed} are not in "
            f"{root} and left out, such as {part.absent[0]}",
            stacklevel=2,
        )


def _require_known(part: NamedClips, numbers: dict[str, int]) -> None:
    for clip, label in zip(part.clips, part.names, strict=True):
        if label not in numbers:
            where = f"{part.listed} line {clip.line}" if clip.line else str(part.listed)
            raise UserError(
                f"{where}: {clip.path} has class {label!r}, which no training clip has"
            )
