"""Clips of videos, as a source of images: a few frames of each, decoded when asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qtool.core.errors import UserError
from qtool.data.images import Rows
from qtool.data.segments import CROP_DRAWS, crop_box, segment_frames
from qtool.data.video_decode import Choose, Frame, read_video

DEFAULT_SIZE = 224
DEFAULT_FRAMES = 8
_MOST_FRAMES = 256


class Clip(NamedTuple):
    """A video, or a part of one: what an annotation says of it.

    Attributes:
        path: video file, or folder of frames.
        first: where the clip starts: in seconds, or, of a folder, its first frame's number.
        last: the second where it ends, or its last frame's number.
        line: of the annotation file; 0 if it has no lines.
    """

    path: str
    first: float
    last: float
    line: int


def read_file(clip: Clip, choose: Choose) -> list[Frame]:
    """Return frames of a clip in a video file, as `read_video` does."""
    return read_video(Path(clip.path), choose, clip.first, clip.last)


@dataclass(frozen=True)
class VideoSource:
    """Clips in files; an item is `frames` images, (3, image_size, image_size) each.

    `load` cuts, resizes (bilinear, with antialiasing) and, with draws, varies all frames of a
    clip alike.

    Args:
        clips: where they are.
        labels: class of every clip, (N,).
        listed: annotation file, for messages.
        read: decoder of chosen frames, (H, W, 3) uint8 RGB, of a clip.
        image_size: side of the images, in pixels.
        frames: images a clip.
    """

    clips: Sequence[Clip]
    labels: NDArray[np.int64]
    listed: Path
    read: Callable[[Clip, Choose], list[Frame]] = read_file
    image_size: int = DEFAULT_SIZE
    frames: int = DEFAULT_FRAMES

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return (3, self.image_size, self.image_size)

    @property
    def draws(self) -> int:
        """Random numbers a clip: a place in every segment, and a crop."""
        return self.frames + CROP_DRAWS

    def __len__(self) -> int:
        return len(self.clips)

    def head(self, count: int | None) -> "VideoSource":
        """Return the first `count` clips (all for None)."""
        return replace(self, clips=self.clips[:count], labels=self.labels[:count])

    def load(self, rows: Rows, draws: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Return the frames (n * frames, C, H, W) of `rows`, a clip's together, in its order.

        Args:
            rows: (n,) or a slice.
            draws: (n, K), K at least `self.draws`, in [0, 1); None: the same frames always.

        Raises:
            UserError: a file is missing or damaged; names it and its line.
        """
        numbers = np.arange(len(self))[rows]
        pixels = np.empty((len(numbers), self.frames, *self.shape), np.uint8)
        for place, number in enumerate(numbers):
            clip = self.clips[number]
            try:
                self._fill(pixels[place], clip, None if draws is None else draws[place])
            except UserError as error:
                where = f"{self.listed} line {clip.line}" if clip.line else self.listed
                raise UserError(f"{error} ({where})") from None
        return pixels.reshape(-1, *self.shape)

    def _fill(
        self, images: NDArray[np.uint8], clip: Clip, draws: NDArray[np.float32] | None
    ) -> None:
        places, crop = (None, None) if draws is None else np.split(draws, [self.frames])
        chosen = self.read(clip, lambda count: segment_frames(count, self.frames, places))
        size = (self.image_size, self.image_size)
        for image, frame in zip(images, chosen, strict=True):
            box = crop_box(frame.shape[1], frame.shape[0], crop)
            seen = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, box=box)
            image[:] = np.asarray(seen).transpose(2, 0, 1)


def clip_shape(image_size: int, frames: int) -> tuple[int, int]:
    """Return side and frames of the images, with the defaults for 0.

    Raises:
        UserError: more frames than there are random numbers for.
    """
    if not 0 <= frames <= _MOST_FRAMES:
        raise UserError(
            f"recipe setting frames: got {frames}, expected 1 to {_MOST_FRAMES}, "
            f"or 0 for {DEFAULT_FRAMES}"
        )
    return image_size or DEFAULT_SIZE, frames or DEFAULT_FRAMES
