"""Frames of a video file, through PyAV (FFmpeg): frame k is always frame k.

A frame is decoded from the last key frame before it. Where seeking really led is checked
against that key frame's time, because with B-frames, and in containers without an index, it
leads astray; then an earlier key frame is tried, in the end the beginning of the file. Without
presentation times, frames are decoded from the beginning and counted as they come out.
"""

import math
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.data.video_times import Timeline, list_packets, opened

Choose = Callable[[int], NDArray[np.int64]]
Frame = NDArray[np.uint8]


def read_video(
    path: Path, choose: Choose, start: float = 0.0, end: float = math.inf
) -> list[Frame]:
    """Return chosen frames, (H, W, 3) uint8 RGB each.

    Args:
        path: video file.
        choose: from the number of frames to those that are wanted, increasing.
        start: where the clip starts, in seconds from the video's first frame.
        end: where it ends.

    Raises:
        UserError: the file is missing, damaged or holds no video.
    """
    with opened(path) as (container, stream):
        timeline = list_packets(path, container, stream)
        first, behind = timeline.span(start, end)
        wanted = (first + choose(behind - first)).tolist()
        numbers = sorted(set(wanted))
        if timeline.keys is None:
            frames = _counted(path, numbers)
        else:
            frames = _sought(path, container, stream, timeline, timeline.keys, numbers)
    return [frames[number] for number in wanted]


def _pixels(frame: av.VideoFrame) -> Frame:
    pixels: Frame = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return pixels


def _counted(path: Path, numbers: list[int]) -> dict[int, Frame]:
    """Decode from the beginning; a number behind the last frame gives the last one."""
    found: dict[int, av.VideoFrame] = {}
    with opened(path) as (container, stream):
        last = None
        for number, last in enumerate(container.decode(stream)):
            if last.is_corrupt:
                raise UserError(f"video {path} is damaged: frame {number} is incomplete")
            if number in numbers:
                found[number] = last
            if number == numbers[-1]:
                break
        if last is None:
            raise UserError(f"video {path} is empty: none of its frames can be decoded")
        return {number: _pixels(found.get(number, last)) for number in numbers}


def _sought(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    timeline: Timeline,
    keys: NDArray[np.int64],
    numbers: list[int],
) -> dict[int, Frame]:
    """Decode frame `numbers`, those with the same last key frame together."""
    found: dict[int, Frame] = {}
    behind = dict(
        zip(numbers, np.searchsorted(keys, timeline.times[numbers], "right"), strict=True)
    )
    for key, group in groupby(numbers, behind.__getitem__):
        members = list(group)
        times = timeline.times[members].tolist()
        frames = _from_keys(container, stream, times, keys[:key].tolist())
        if frames is None:
            with opened(path) as (again, beginning):
                frames = _frames_at(again, beginning, times, None)
        if frames is None:
            raise UserError(f"video {path} is damaged: frame {members[0]} is incomplete")
        found |= zip(members, frames, strict=True)
    return found


def _from_keys(
    container: InputContainer, stream: VideoStream, times: list[int], keys: list[int]
) -> list[Frame] | None:
    """Decode from the last of `keys`, or, where that fails, ever farther back."""
    place, back = len(keys) - 1, 1
    while place >= 0:
        try:
            container.seek(keys[place], stream=stream)
            frames = _frames_at(container, stream, times, keys[place])
        except av.FFmpegError:
            frames = None
        if frames is not None:
            return frames
        place, back = place - back, 2 * back
    return None


def _frames_at(
    container: InputContainer, stream: VideoStream, times: list[int], key: int | None
) -> list[Frame] | None:
    """Decode on from here and return what is shown at each of `times`, increasing.

    None if a frame on the way is incomplete, because later ones build on it, or if the first
    is not a key frame at `key` or before.
    """
    found: list[av.VideoFrame] = []
    shown = None
    for frame in container.decode(stream):
        if frame.pts is None:
            continue
        astray = key is not None and (not frame.key_frame or frame.pts > key)
        if frame.is_corrupt or (shown is None and astray):
            return None
        # Where no frame has exactly the time, the one before is still shown.
        while shown and len(found) < len(times) and frame.pts > times[len(found)]:
            found.append(shown)
        shown = frame
        if len(found) < len(times) and frame.pts == times[len(found)]:
            found.append(frame)
        if len(found) == len(times):
            break
    if shown is None:
        return None
    found += [shown] * (len(times) - len(found))
    return [_pixels(frame) for frame in found]
