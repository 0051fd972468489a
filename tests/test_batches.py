"""Batches and augmentation: the same wherever they are drawn, and what each name does."""

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from qtool.core.errors import UserError
from qtool.data.augment import crop_boxes, parse_augment
from qtool.data.batches import Batch, Batches, to_batch
from qtool.data.draws import uniform_draws
from qtool.data.images import Images, to_float

ALL = ("crop2", "flip", "resized_crop", "cutout3")


def images(count: int = 50, size: int = 12) -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 3, size, size), np.uint8)
    return Images(pixels, np.arange(count, dtype=np.int64))


def equal(left: Batch, right: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def all_equal(left: Iterator[Batch], right: Iterator[Batch]) -> bool:
    return all(equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_batch_is_the_grid_of_its_pixels_channels_last() -> None:
    x, labels = to_batch(images(), np.array([3, 1]))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(x.numpy(), to_float(images().pixels[[3, 1]]))
    assert labels.tolist() == [3, 1]


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own() -> None:
    batches = Batches(images(), 10, 0)
    orders = [torch.cat([labels for _, labels in batches.epoch(e)]).tolist() for e in (0, 1)]
    assert len(batches) == 5 and orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))


def test_batches_are_the_same_from_any_start_and_in_any_number_of_workers() -> None:
    here = Batches(images(), 8, 7, ALL)
    there = Batches(images(), 8, 7, ALL, workers=2)
    # An abandoned epoch leaves nothing behind in workers that stay.
    assert equal(next(there.epoch(0)), next(here.epoch(0)))
    for epoch in (1, 2):
        expected = list(here.epoch(epoch))
        assert len(expected) == 6
        assert all_equal(there.epoch(epoch), iter(expected))
        assert all_equal(here.epoch(epoch, start=4), iter(expected[4:]))
    assert not equal(expected[0], next(Batches(images(), 8, 8, ALL).epoch(2)))


def test_ranks_share_a_global_batch() -> None:
    whole = list(Batches(images(), 10, 3, ALL).epoch(1))
    parts = [list(Batches(images(), 10, 3, ALL, 0, rank, 2).epoch(1)) for rank in (0, 1)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for rank, share in enumerate(shares):
            assert equal(share, (batch[0][rank::2], batch[1][rank::2]))


def test_an_image_is_augmented_alike_in_batches_of_any_size() -> None:
    def by_row(size: int) -> dict[int, torch.Tensor]:
        drawn = Batches(images(48), size, 5, ALL).epoch(4)
        return {int(row): x for xs, rows in drawn for x, row in zip(xs, rows, strict=True)}

    one, six = by_row(1), by_row(6)
    assert one.keys() == six.keys() and all(torch.equal(one[r], six[r]) for r in one)


def test_draws_are_uniform_and_differ_by_seed_epoch_row_and_column() -> None:
    rows = np.arange(20_000)
    draws = uniform_draws(1, 2, rows, 2)
    assert draws.dtype == np.float32 and 0 <= draws.min() and draws.max() < 1
    counts = np.histogram2d(*draws.T, bins=10)[0]
    # chi-square of 100 cells: 99 expected, 160 has probability 1e-4
    assert ((counts - 200) ** 2 / 200).sum() < 160
    others = [uniform_draws(2, 2, rows, 2), uniform_draws(1, 3, rows, 2), draws[::-1]]
    for other in [*others, draws[:, ::-1]]:
        assert abs(np.corrcoef(draws[:, 0], other[:, 0])[0, 1]) < 0.05
    assert np.array_equal(uniform_draws(1, 2, rows[5:9], 1, first=1), draws[5:9, 1:])


def test_flip_and_crop_and_cutout_by_hand() -> None:
    pixels = images(2, 4).pixels
    flipped = parse_augment(["flip"])(pixels, np.array([[0.4], [0.5]], np.float32))
    assert np.array_equal(flipped[0], pixels[0, :, :, ::-1])
    assert np.array_equal(flipped[1], pixels[1])
    corner = np.array([[0.0, 0.0], [0.999, 0.5]], np.float32)
    cropped = parse_augment(["crop1"])(pixels, corner)
    assert np.array_equal(cropped[0, :, 1:, 1:], pixels[0, :, :3, :3])
    assert not cropped[0, :, 0].any() and not cropped[0, :, :, 0].any()
    assert np.array_equal(cropped[1, :, :3], pixels[1, :, 1:]) and not cropped[1, :, 3].any()
    cut = parse_augment(["cutout2"])(pixels, corner)
    expected = pixels.copy()
    expected[0, :, 0, 0] = expected[1, :, 2:4, 1:3] = 0
    assert np.array_equal(cut, expected)


def test_resized_crop_takes_a_box_within_the_image() -> None:
    rng = np.random.default_rng(0)
    draws = rng.random((1000, 4), np.float32)
    top, left, tall, wide = crop_boxes(draws, 20, 40).T
    assert min(top.min(), left.min()) >= 0
    assert (top + tall).max() <= 20 + 1e-9 and (left + wide).max() <= 40 + 1e-9
    inside = (tall < 20) & (wide < 40)
    share = (tall * wide / 800)[inside]
    assert share.min() >= 0.08 - 1e-9 and 0.7 < (wide / tall)[inside].min() < 0.8
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8), (8, 1, 24, 24))
    out = parse_augment(["resized_crop"])(ramp, draws[:8])
    # Bilinear on a ramp is a ramp within the box.
    boxes = crop_boxes(draws[:8], 24, 24)
    middle = boxes[:, 1, None] + (np.arange(24) + 0.5) * boxes[:, 3, None] / 24 - 0.5
    expected = np.clip(middle, 0, 23)[:, None, None] * 10
    assert np.abs(out - expected).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flop", "unknown augmentation 'flop': did you mean flip"),
        ("crop", "augment: got 'crop', expected crop4, with a number of pixels"),
        ("cutout0", "got 'cutout0', expected cutout4"),
        ("flip2", "augment: got 'flip2', expected flip$"),
    ],
)
def test_unknown_augmentations_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(Batches(images(), 5, 0, (name,)).epoch(0))


class Failing(Images):
    """Images of which loading kills the process, or finds a damaged file."""

    def load(self, rows, draws=None):
        if 13 in self.labels[rows]:
            if self.frames == 1:
                raise UserError("image n/13.jpeg is damaged")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(rows, draws)


@pytest.mark.parametrize(
    ("frames", "message"),
    [(1, "^image n/13.jpeg is damaged$"), (-1, "worker was killed, .* repeat .* --resume")],
)
def test_a_killed_worker_and_a_damaged_file_are_one_line(
    monkeypatch: pytest.MonkeyPatch, frames: int, message: str
) -> None:
    # Seconds after which torch looks whether its workers live.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
    pixels, labels = images().pixels, images().labels
    batches = Batches(Failing(pixels, labels, frames), 10, 0, workers=2)
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(UserError, match=message) as caught:
        list(batches.epoch(0))
    assert "\n" not in str(caught.value) and signal.getsignal(signal.SIGCHLD) == before
