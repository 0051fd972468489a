"""Frames of a video file, through PyAV (FFmpeg): frame k is always frame k.

The packets are listed first, without decoding: their presentation times, sorted, number the
frames, whatever order they are stored in and wherever time starts. A frame is then decoded
from the last key frame before it. Where seeking really led is checked against that key
frame's time, because with B-frames, and in containers without an index, it leads astray;
then an earlier key frame is tried, in the end the beginning of the file.

Containers that store no presentation times of their own (AVI, elementary streams) are decoded
from the beginning, and their frames counted as they come out.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from qtool.errors import UserError

Choose = Callable[[int], NDArray[np.int64]]
Frame = NDArray[np.uint8]
# FFmpeg's names of containers with the presentation time of every frame.
_TIMED = {"mp4", "matroska", "mpegts", "flv"}
_DEFAULT_RATE = 25


@dataclass(frozen=True)
class _Timeline:
    """Presentation times of the frames, and of the key frames, in units of `unit` seconds.

    `keys` is None where the times are only frame numbers and nothing can be sought.
    """

    times: NDArray[np.int64]
    keys: NDArray[np.int64] | None
    unit: float

    def span(self, start: float, end: float) -> tuple[int, int]:
        """Return the numbers of the first frame of `start` to `end` and of the one behind."""
        ticks = self.times - self.times[0]
        low, high = start / self.unit, end / self.unit
        # A rounding error of the division is no tick.
        first, behind = (int(n) for n in np.searchsorted(ticks, (low - 1e-6, high - 1e-6)))
        if first >= behind:  # between two frames, or behind the last: what is shown then
            first = max(int(np.searchsorted(ticks, low + 1e-6, "right")) - 1, 0)
            behind = first + 1
        return first, behind


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
    with _opened(path) as (container, stream):
        timeline = _list_packets(path, container, stream)
        first, behind = timeline.span(start, end)
        wanted = (first + choose(behind - first)).tolist()
        numbers = sorted(set(wanted))
        if timeline.keys is None:
            frames = _counted(path, numbers)
        else:
            frames = _sought(path, container, stream, timeline, timeline.keys, numbers)
    return [frames[number] for number in wanted]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open `path`; whatever FFmpeg says inside the block becomes one line."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"video {path} holds no pictures: damaged, or sound only")
            stream = container.streams.video[0]
            # Data workers share the cores already.
            stream.codec_context.thread_count = 1
            yield container, stream
    except FileNotFoundError:
        raise UserError(f"video {path} does not exist") from None
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"video {path} is damaged or not a video: {reason}") from None


def _list_packets(path: Path, container: InputContainer, stream: VideoStream) -> _Timeline:
    packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
    if not packets:
        raise UserError(f"video {path} is empty: it holds no frames")
    if any(packet.is_corrupt for packet in packets):
        raise UserError(f"video {path} is damaged: a frame of it is truncated")
    times = {p.pts for p in packets}
    timed = _TIMED & set(container.format.name.split(",")) and None not in times
    if not timed or len(times) < len(packets) or stream.time_base is None:
        rate = float(stream.average_rate or _DEFAULT_RATE)
        return _Timeline(np.arange(len(packets)), None, 1 / rate)
    keys = [p.pts for p in packets if p.is_keyframe]
    return _Timeline(
        np.sort(np.array([p.pts for p in packets], np.int64)),
        np.sort(np.array(keys, np.int64)),
        float(stream.time_base),
    )


def _pixels(frame: av.VideoFrame) -> Frame:
    pixels: Frame = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return pixels


def _counted(path: Path, numbers: list[int]) -> dict[int, Frame]:
    """Decode from the beginning; a number behind the last frame gives the last one."""
    found: dict[int, av.VideoFrame] = {}
    with _opened(path) as (container, stream):
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
    timeline: _Timeline,
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
            with _opened(path) as (again, beginning):
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
