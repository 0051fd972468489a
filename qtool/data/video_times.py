"""What a video file holds, without decoding it: the times at which its frames are shown.

Sorted, they number the frames, whatever order the file has them in and wherever time starts.
Containers that store no such times (AVI, elementary streams) say only how many frames there
are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from qtool.core.errors import UserError

# FFmpeg's names of containers with the presentation time of every frame.
_TIMED = {"mp4", "matroska", "mpegts", "flv"}
_DEFAULT_RATE = 25


@dataclass(frozen=True)
class Timeline:
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


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
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


def list_packets(path: Path, container: InputContainer, stream: VideoStream) -> Timeline:
    """Return when the frames of the open `stream` are shown; reads all of the file.

    Raises:
        UserError: the file holds no frames, or ends inside one.
    """
    packets = [
        (packet.pts, packet.is_keyframe, packet.is_corrupt)
        for packet in container.demux(stream)
        if packet.size and not packet.is_discard
    ]
    if not packets:
        raise UserError(f"video {path} is empty: it holds no frames")
    if any(corrupt for _, _, corrupt in packets):
        raise UserError(f"video {path} is damaged: a frame of it is truncated")
    times = {time for time, _, _ in packets if time is not None}
    timed = _TIMED & set(container.format.name.split(","))
    if not timed or len(times) < len(packets) or stream.time_base is None:
        rate = float(stream.average_rate or _DEFAULT_RATE)
        return Timeline(np.arange(len(packets)), None, 1 / rate)
    keys = [time for time, is_key, _ in packets if is_key]
    return Timeline(
        np.array(sorted(times), np.int64),
        np.sort(np.array(keys, np.int64)),
        float(stream.time_base),
    )
