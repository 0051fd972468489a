"""Videos that were unpacked into folders of pictures, one a frame, such as img_00001.jpg."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qtool.core.errors import UserError
from qtool.data.decode import SUFFIXES, open_image
from qtool.data.video import Clip
from qtool.data.video_decode import Choose, Frame

_NUMBERED = re.compile(r"(.*?)(\d+)(\.\w+)")


@dataclass(frozen=True)
class FrameFolders:
    """Reader of clips whose frames are `prefix`, number with `digits` digits, `suffix`.

    `first` is the number of a video's first frame, 0 or 1.
    """

    prefix: str
    digits: int
    suffix: str
    first: int

    def __call__(self, clip: Clip, choose: Choose) -> list[Frame]:
        """Return chosen frames of `clip`, (H, W, 3) uint8 RGB each.

        Raises:
            UserError: a frame is missing or damaged.
        """
        count = int(clip.last) - int(clip.first) + 1
        numbers = (int(clip.first) + choose(count)).tolist()
        frames = {number: self._read(Path(clip.path), number) for number in set(numbers)}
        return [frames[number] for number in numbers]

    def _read(self, folder: Path, number: int) -> Frame:
        path = folder / f"{self.prefix}{number:0{self.digits}d}{self.suffix}"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"video frame {path} is not readable: {error.strerror}") from None
        return np.asarray(open_image(data, str(path), "RGB"))


def find_frame_names(folder: Path) -> FrameFolders:
    """Return the reader that fits the names of the pictures in `folder`, the first of a list.

    Raises:
        UserError: no folder, or no numbered pictures in it.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        raise UserError(f"folder of video frames {folder} does not exist") from None
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match and match[3].lower() in SUFFIXES:
            return FrameFolders(match[1], len(match[2]), match[3], min(int(match[2]), 1))
    raise UserError(
        f"folder of video frames {folder}: no numbered pictures such as img_00001.jpg in it"
    )
