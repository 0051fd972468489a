"""Tiny videos, encoded by the tests themselves, whose frames show their own number."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

BITS = 6
STRIPE = 8
WIDTH, HEIGHT = BITS * STRIPE, 32


def picture(number: int, colour: int = 0) -> np.ndarray:
    """Return a frame (H, W, 3): stripe k is white where bit k of `number` is set."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            frame[:, bit * STRIPE : (bit + 1) * STRIPE] = 255
    frame[: HEIGHT // 4] = colour
    return frame


def number_of(frame: np.ndarray) -> int:
    """Return the number that a decoded frame (H, W, 3) shows."""
    stripes = frame[HEIGHT // 2 :].mean((0, 2)).reshape(BITS, STRIPE).mean(1)
    return sum(1 << bit for bit in range(BITS) if stripes[bit] > 128)


def write_video(
    path: Path,
    codec: str = "mpeg4",
    count: int = 30,
    first: int = 0,
    b_frames: int = 0,
    rate: int = 10,
    options: dict[str, str] | None = None,
) -> Path:
    """Write `count` numbered frames, a key frame every 12, time starting at frame `first`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = {"ffv1": "bgr0", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), "rgb24")
            frame.pts = first + number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_frames(
    folder: Path, count: int, name: str = "img_{:05}.jpg", first: int = 1
) -> Path:
    """Write `count` numbered frames as pictures; frame `first + k` shows k."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(picture(number)).save(folder / name.format(first + number))
    return folder
