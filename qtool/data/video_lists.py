"""Annotation lists of videos: a clip a line, with the number of its class.

    folder first last class    frames of a video, as Video-Dataset-Loading-Pytorch lists them
    folder count class         its first frames, as mmaction2 lists them (rawframes)
    file class                 a video file, as mmaction2 lists them (videos)

Separated by spaces, ``;`` or ``,``; empty lines and those that start with # are skipped. A
folder has two lists, ``*train*.txt`` and ``*val*.txt`` or ``*test*.txt``, or a list
``annotations.txt`` in its folders train and val. What they name is in the folder itself or in
one of its folders frames, videos, rawframes, train, rawframes_train, ... Classes are numbered
from 0; the training list says how many there are.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qtool.core.errors import UserError
from qtool.data.annotations import find_annotations, numbered_lines
from qtool.data.folders import data_folder
from qtool.data.frame_folders import find_frame_names
from qtool.data.images import DataSet
from qtool.data.video import Clip, VideoSource, clip_shape, read_file

_FRAMES, _FILES = "rawframes", "videos"
_SEPARATORS = (None, ";", ",")
_SHAPES = {
    _FRAMES: ((3, "folder first last class"), (2, "folder count class")),
    _FILES: ((1, "file class"),),
}
# Line of the list, path, numbers behind it.
_Entry = tuple[int, str, list[int]]


def load_video_frames(folder: Path | None, image_size: int = 0, frames: int = 0) -> DataSet:
    """Return clips in folders of frames, listed in `folder` or ``$QTOOL_DATA``.

    Args:
        folder: of the lists.
        image_size: side of the images; 0: 224.
        frames: images a clip; 0: 8.

    Raises:
        UserError: no lists, a line of another shape, an unknown class, no pictures.
    """
    return _load("video_frames", _FRAMES, folder, clip_shape(image_size, frames))


def load_video_files(folder: Path | None, image_size: int = 0, frames: int = 0) -> DataSet:
    """Return whole video files as clips; as `load_video_frames` otherwise."""
    return _load("video_files", _FILES, folder, clip_shape(image_size, frames))


def _load(name: str, kind: str, folder: Path | None, shape: tuple[int, int]) -> DataSet:
    root = data_folder(name, folder)
    train_list = find_annotations(root, "*.txt", ("train",), kind)
    test_list = find_annotations(root, "*.txt", ("val", "test"), kind)
    train, test = (_read_list(path, kind) for path in (train_list, test_list))
    classes = 1 + max(numbers[-1] for _, _, numbers in train)
    for line, _, numbers in test:
        if numbers[-1] >= classes:
            raise UserError(
                f"{test_list} line {line}: class {numbers[-1]}, expected 0 to {classes - 1}, "
                f"the classes in {train_list.name}"
            )
    return DataSet(
        name,
        _source(root, train_list, "train", kind, train, shape),
        _source(root, test_list, "val", kind, test, shape),
        classes,
    )


def _read_list(path: Path, kind: str) -> list[_Entry]:
    entries: list[_Entry] = []
    shapes = _SHAPES[kind]
    for line, text in numbered_lines(path):
        for count, wanted in shapes:
            if (parts := _split(text, count)) is not None:
                # The first line says which shape all have.
                shapes = ((count, wanted),)
                entries.append((line, *parts))
                break
        else:
            expected = " or ".join(repr(wanted) for _, wanted in shapes)
            raise UserError(f"{path} line {line}: got {text!r}, expected {expected}")
    if not entries:
        raise UserError(f"{path}: lists no videos")
    return entries


def _split(text: str, count: int) -> tuple[str, list[int]] | None:
    """Return what is before the last `count` whole numbers (it may hold spaces), and them."""
    for separator in _SEPARATORS:
        name, *numbers = text.rsplit(separator, count)
        if len(numbers) == count and all(n.strip().isdecimal() for n in numbers):
            return name.strip(), [int(n) for n in numbers]
    return None


def _source(
    root: Path,
    listed: Path,
    split: str,
    kind: str,
    entries: list[_Entry],
    shape: tuple[int, int],
) -> VideoSource:
    base = _base(root, (listed.parent.name, f"{kind}_{split}", split, kind), entries[0][1])
    reader = find_frame_names(base / entries[0][1]) if kind == _FRAMES else None
    first = reader.first if reader else 0
    clips = [_clip(base, line, name, numbers, first) for line, name, numbers in entries]
    _require_files(listed, clips)
    labels = np.array([numbers[-1] for _, _, numbers in entries], np.int64)
    return VideoSource(clips, labels, listed, reader or read_file, *shape)


def _base(root: Path, names: Sequence[str], first: str) -> Path:
    """Return the folder in `root` that the first path of a list is relative to."""
    found = [root / name for name in (*names, "frames") if (root / name / first).exists()]
    return found[0] if found else root


def _clip(base: Path, line: int, name: str, numbers: list[int], start: int) -> Clip:
    """Return the clip of a list's entry; `start` numbers the first frame of a whole video."""
    path = str(base / name)
    if len(numbers) == 1:
        return Clip(path, 0, math.inf, line)
    first, last = (start, start + numbers[0] - 1) if len(numbers) == 2 else numbers[:2]
    return Clip(path, first, last, line)


def _require_files(listed: Path, clips: Sequence[Clip]) -> None:
    """Refuse clips without frames and missing files; a folder is listed once, for speed."""
    inside: dict[str, set[str]] = {}
    for clip in clips:
        parent, name = os.path.split(clip.path)
        if parent not in inside:
            inside[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()
        if name not in inside[parent]:
            raise UserError(f"{listed} line {clip.line}: {clip.path} does not exist")
        if clip.last < clip.first:
            raise UserError(
                f"{listed} line {clip.line}: {clip.path} has no frames, from number "
                f"{clip.first} to {clip.last}"
            )
