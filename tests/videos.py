"""Tiny videos, encoded by the tests themselves, whose frames show their own number."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

DEMO = Path(os.environ.get("QTOOL_DATA", "")) / "video-demo"
needs_demo = pytest.mark.skipif(
    "QTOOL_DATA" not in os.environ or not DEMO.is_dir(),
    reason="QTOOL_DATA holds no video-demo folder",
)
BITS = 6
STRIPE = 8
WIDTH, HEIGHT = BITS * STRIPE, 32


def picture(number: int) -> np.ndarray:
    """Return a frame (H, W, 3): stripe k is white where bit k of `number` is set."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            frame[:, bit * STRIPE : (bit + 1) * STRIPE] = 255
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
    step: int = 1,
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames 0, `step`, ..., 10 a second; time starts `first` frames late."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = {"ffv1": "bgr0", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(step * number), "rgb24")
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
