"""Which frames and crops of a clip are seen, and how its frames' logits become one answer."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from qtool.data.clips import clip_logits
from qtool.data.segments import CROP_DRAWS, crop_box, segment_frames


@pytest.mark.parametrize(
    ("count", "segments", "frames"),
    [
        (16, 4, [2, 6, 10, 14]),
        (10, 3, [1, 5, 8]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (1, 4, [0, 0, 0, 0]),
        (300, 1, [150]),
    ],
)
def test_evaluation_takes_the_centre_of_every_segment(
    count: int, segments: int, frames: list[int]
) -> None:
    assert segment_frames(count, segments).tolist() == frames


def test_training_draws_a_frame_of_every_segment() -> None:
    draws = np.random.default_rng(0).random((2000, 4), np.float32)
    drawn = np.stack([segment_frames(16, 4, row) for row in draws])
    for segment in range(4):
        counts = np.bincount(drawn[:, segment], minlength=16)
        inside = counts[4 * segment : 4 * segment + 4]
        assert inside.sum() == 2000 and inside.min() > 400
    almost_one = np.full(8, np.nextafter(np.float32(1), np.float32(0)))
    assert segment_frames(10**6, 8, almost_one)[-1] == 10**6 - 1
    assert segment_frames(5, 8, almost_one).tolist() == [0, 1, 1, 2, 3, 3, 4, 4]


def test_crops_lie_inside_at_corners_or_the_centre() -> None:
    assert crop_box(320, 256) == (48, 16, 272, 240)
    assert crop_box(100, 200) == (6.25, 56.25, 93.75, 143.75)
    draws = np.random.default_rng(0).random((2000, CROP_DRAWS), np.float32)
    boxes = np.array([crop_box(340, 256, row) for row in draws])
    sides = boxes[:, 2:] - boxes[:, :2]
    pairs = {(w, h) for w, h in sides.tolist()}
    assert {side for pair in pairs for side in pair} == {256, 224, 192, 168}
    # Neighbouring sizes only: at most two steps of distortion.
    assert len(pairs) == 10 and (256, 192) not in pairs and (224, 256) in pairs
    places = {
        (round(x, 9), round(y, 9)) for x, y in boxes[:, :2] / ((340, 256) - sides + 1e-12)
    }
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 340 and boxes[:, 3].max() <= 256
    assert {x for x, _ in places} <= {0, 0.5, 1}


def test_clip_logits_are_the_mean_over_frames() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (6, 5)).astype(np.float32)
    expected = logits.reshape(2, 3, 5).astype(np.float64).mean(1)
    found = clip_logits(logits, 2)
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-6
    # Deployed models answer with exactly the floats of training.
    assert np.array_equal(clip_logits(torch.from_numpy(logits), 2).numpy(), found)
    assert clip_logits(logits, 6) is logits


def test_clip_logits_pass_gradients_to_every_frame() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    (clip_logits(logits, 2) * torch.tensor([[1.0, 2, 3], [4, 5, 6]])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.5, 1, 1.5]] * 2 + [[2, 2.5, 3]] * 2


@pytest.mark.parametrize(("frames", "labels"), [(5, 2), (3, 4), (3, 0)])
def test_clip_logits_refuse_frames_that_do_not_divide(frames: int, labels: int) -> None:
    with pytest.raises(ValueError, match=f"{frames} logits do not divide among {labels}"):
        clip_logits(np.zeros((frames, 2), np.float32), labels)


def test_clip_logits_need_no_torch() -> None:
    code = "import sys, qtool.data.clips; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
