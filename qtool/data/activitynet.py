"""ActivityNet (Caba Heilbron et al. 2015): segments of YouTube videos, 200 classes.

Read are the published annotations, ``activity_net.v1-3.min.json`` (or another of its
versions), and the videos, ``v_<id>.mp4`` (also .mkv or .webm, or without v_), anywhere in
the folder. Every annotated segment of the subsets training and validation is a clip;
testing has no labels.

Source: http://activity-net.org/download.html.
"""

import math
from pathlib import Path
from typing import Any

from qtool.core.errors import UserError
from qtool.core.files import read_json
from qtool.data.annotations import find_annotations
from qtool.data.folders import data_folder, nested_folder
from qtool.data.images import DataSet
from qtool.data.video import Clip
from qtool.data.video_names import NamedClips, find_videos, named_data_set


def load_activitynet(folder: Path | None, image_size: int = 0, frames: int = 0) -> DataSet:
    """Return the data set in `folder` or ``$QTOOL_DATA``.

    Args:
        folder: of the annotations.
        image_size: side of the images; 0: 224.
        frames: images a clip; 0: 8.

    Raises:
        UserError: annotations that are missing or of another shape; no videos.
    """
    root = nested_folder(data_folder("activitynet", folder), "activitynet")
    path = find_annotations(root, "*.json", ("activity",))
    database = read_json(path, "annotations").get("database")
    if not isinstance(database, dict):
        raise UserError(f"annotations {path}: no object 'database', not ActivityNet's format")
    videos = find_videos(root)
    train, test = NamedClips(path), NamedClips(path)
    parts = {"training": train, "validation": test}
    for name, entry in database.items():
        _add_video(parts, path, name, entry, videos)
    return named_data_set("activitynet", root, train, test, image_size, frames)


def _add_video(
    parts: dict[str, NamedClips], path: Path, name: str, entry: Any, videos: dict[str, str]
) -> None:
    try:
        if entry["subset"] not in parts:
            return
        segments = [(str(a["label"]), *_seconds(a["segment"])) for a in entry["annotations"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"annotations {path}: video {name}: expected a subset, and annotations with a "
            "label and a segment [start, end] in seconds"
        ) from None
    for label, start, end in segments:
        clip = Clip(f"v_{name}.mp4", start, end, 0)
        parts[entry["subset"]].add((f"v_{name}", name), videos, clip, label)


def _seconds(segment: Any) -> tuple[float, float]:
    """Return start and end; a few published segments have them the other way round."""
    first, second = (float(value) for value in segment)
    if not (math.isfinite(first) and math.isfinite(second)):
        raise ValueError
    return min(first, second), max(first, second)
