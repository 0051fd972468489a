"""Which frames of a clip a network sees, and which part of them.

Temporal segment networks (Wang et al., ECCV 2016, https://arxiv.org/abs/1608.00859,
sections 3.1 and 3.2): a clip is cut into segments of equal length, one frame comes from
each. In training the frame, and a crop of one of four sizes at a corner or in the centre,
are drawn; in evaluation they are in the middle. A clip with fewer frames than segments
shows some of them repeatedly.
"""

import numpy as np
from numpy.typing import NDArray

# Sides of the crop, of 256 pixels of the shorter side; width and height are neighbours here.
_SIDES = (256 / 256, 224 / 256, 192 / 256, 168 / 256)
_SHAPES = tuple((w, h) for i, w in enumerate(_SIDES) for h in _SIDES[max(i - 1, 0) : i + 2])
_PLACES = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))
_EVALUATION = 224 / 256
# How many numbers `crop_box` draws with.
CROP_DRAWS = 2


def segment_frames(
    count: int, segments: int, draws: NDArray[np.float32] | None = None
) -> NDArray[np.int64]:
    """Return `segments` increasing frame numbers below `count`, one of each segment.

    Args:
        count: frames of the clip, at least 1.
        segments: how many frames are seen.
        draws: (segments,) in [0, 1), the place in each segment; None: its centre.
    """
    # In float64, where no draw rounds up into the next segment.
    inside = np.full(segments, 0.5) if draws is None else draws.astype(np.float64)
    return np.floor((np.arange(segments) + inside) * count / segments).astype(np.int64)


def crop_box(
    width: int, height: int, draws: NDArray[np.float32] | None = None
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom, in pixels, of what is seen of a frame.

    Args:
        width: of the frame, in pixels.
        height: of the frame, in pixels.
        draws: (CROP_DRAWS,) in [0, 1): size, place; None: the centre.
    """
    side = min(width, height)
    wide, tall, across, down = _EVALUATION, _EVALUATION, 0.5, 0.5
    if draws is not None:
        wide, tall = _SHAPES[int(float(draws[0]) * len(_SHAPES))]
        across, down = _PLACES[int(float(draws[1]) * len(_PLACES))]
    left, top = across * (width - wide * side), down * (height - tall * side)
    return left, top, left + wide * side, top + tall * side
