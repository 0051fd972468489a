"""Kinetics (Kay et al. 2017) and its subset Mini-Kinetics (Xie et al. 2018): 10 s of YouTube.

Read are the published annotations, ``train.csv`` and ``val.csv`` (or ``validate.csv``,
``kinetics-400_train.csv``, ...) with the columns label, youtube_id, time_start, time_end, and
videos that were cut out by them: ``<youtube_id>_<time_start>_<time_end>.mp4``, times in
seconds, six digits, or ``<youtube_id>.mp4``, anywhere in the folder. Where the folder also has
``train_ytid_list.txt`` and ``val_ytid_list.txt``, as published for Mini-Kinetics, only the
videos in them count.
Sources: https://github.com/cvdfoundation/kinetics-dataset,
https://github.com/s9xie/Mini-Kinetics-200.
"""

import csv
import math
from pathlib import Path

from qtool.core.errors import UserError
from qtool.data.annotations import find_annotations, numbered_lines
from qtool.data.folders import data_folder, nested_folder
from qtool.data.images import DataSet
from qtool.data.video import Clip
from qtool.data.video_names import NamedClips, find_videos, named_data_set

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def load_kinetics(folder: Path | None, image_size: int = 0, frames: int = 0) -> DataSet:
    """Return the data set in `folder` or ``$QTOOL_DATA``.

    Args:
        folder: of the annotations.
        image_size: side of the images; 0: 224.
        frames: images a clip; 0: 8.

    Raises:
        UserError: annotations that are missing or of another shape; no videos.
    """
    root = nested_folder(data_folder("kinetics", folder), "kinetics")
    train_csv = find_annotations(root, "*.csv", ("train",))
    test_csv = find_annotations(root, "*.csv", ("val", "test"))
    videos = find_videos(root)
    train = _read_csv(train_csv, videos, _subset(root, "train"))
    test = _read_csv(test_csv, videos, _subset(root, "val"))
    return named_data_set("kinetics", root, train, test, image_size, frames)


def _subset(root: Path, split: str) -> set[str] | None:
    """Return the YouTube ids in the list of Mini-Kinetics; None: there is none, all count."""
    lists = sorted(root.glob(f"*{split}_ytid_list.txt"))
    return {text for _, text in numbered_lines(lists[0])} if lists else None


def _read_csv(path: Path, videos: dict[str, str], subset: set[str] | None) -> NamedClips:
    part = NamedClips(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if lacking := [c for c in _COLUMNS if c not in (reader.fieldnames or ())]:
                raise UserError(f"{path} line 1: column {lacking[0]} is missing")
            for row in reader:
                _add_row(part, row, reader.line_num, videos, subset)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"annotations {path} are not readable: {error}") from None
    return part


def _add_row(
    part: NamedClips,
    row: dict[str, str | None],
    line: int,
    videos: dict[str, str],
    subset: set[str] | None,
) -> None:
    label, youtube_id, start, end = (row[column] or "" for column in _COLUMNS)
    if subset is not None and youtube_id not in subset:
        return
    if not (label and youtube_id and start.isdecimal() and end.isdecimal()):
        raise UserError(
            f"{part.listed} line {line}: got {','.join((label, youtube_id, start, end))}, "
            f"expected {','.join(_COLUMNS)} with times in whole seconds"
        )
    name = f"{youtube_id}_{int(start):06d}_{int(end):06d}"
    part.add((name, youtube_id), videos, Clip(f"{name}.mp4", 0, math.inf, line), label)
