"""Episodes: which images they have, and the data sets whose test classes are new."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fewshot_sets import SHAPE, patterns, tiny_fewshot
from image_sets import write_folders, write_miniimagenet, write_omniglot
from PIL import Image

from qtool.core.errors import UserError
from qtool.data import load_dataset
from qtool.data.batch_source import parts_of
from qtool.data.episodes import Episode, EpisodeDraws, Episodes, EpisodeSize
from qtool.data.images import Images
from qtool.data.kept import Kept
from qtool.data.turned import Turned

QTOOL_DATA = Path(os.environ.get("QTOOL_DATA", "nowhere"))
SIZE = EpisodeSize(ways=4, shots=3, queries=2)


def episodes(seed: int = 0, **options: int) -> Episodes:
    data = tiny_fewshot()
    draws = EpisodeDraws(data.train.labels, SIZE, seed, "tiny")
    return Episodes(data.train, draws, 5, **options)


def same(one: Episode, other: Episode) -> bool:
    return torch.equal(one.support, other.support) and torch.equal(one.query, other.query)


def test_an_episode_has_its_classes_and_no_image_twice() -> None:
    images = tiny_fewshot().train
    for number in range(20):
        rows = EpisodeDraws(images.labels, SIZE, 0, "tiny").rows(1, number)
        assert rows.shape == (4, 5) and len(np.unique(rows)) == 20
        labels = images.labels[rows]
        assert (labels == labels[:, :1]).all() and len(np.unique(labels)) == 4


def test_tensors_are_images_of_those_rows() -> None:
    source = episodes()
    (batch,) = (each for place, each in enumerate(source.epoch(3)) if place == 2)
    rows = source.draws.rows(3, 2, 0)
    assert batch.support.shape == (1, 12, *SHAPE) and batch.query.shape == (1, 8, *SHAPE)
    expected = source.source.load(rows[:, :3].reshape(-1)) / 255
    assert np.allclose(batch.support[0].numpy(), expected, atol=1e-6)
    assert batch.support_labels.tolist() == [[0] * 3 + [1] * 3 + [2] * 3 + [3] * 3]
    assert batch.query_labels.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]


def test_batches_depend_on_seed_epoch_and_place_alone() -> None:
    whole = list(episodes().epoch(2))
    assert len(whole) == 5 == len(episodes())
    late = list(episodes().epoch(2, 3))
    assert len(late) == 2 and same(late[0], whole[3]) and same(late[1], whole[4])
    others = (next(episodes(seed=1).epoch(2)), next(episodes().epoch(1)), whole[1])
    assert not any(same(whole[0], other) for other in others)


def test_a_batch_is_cut_between_episodes() -> None:
    (whole, *_) = episodes(tasks=4).epoch(1)
    halves = parts_of(whole, 2)
    assert torch.equal(halves[1].support, whole.support[2:])
    second, third = halves[1].tasks()
    assert (second.place, third.place) == (2, 3)
    assert torch.equal(third.images, torch.cat([whole.support[3], whole.query[3]]))
    assert third.query_labels.tolist() == whole.query_labels[3].tolist()


@pytest.mark.parametrize(("size", "said"), [
    (EpisodeSize(13, 1, 1), "tiny: 12 classes, an episode has 13: set fewer ways"),
    (EpisodeSize(2, 6, 5), "tiny: a class of 10 images, an episode takes 6 shots and 5 queri"),
])  # fmt: skip
def test_too_few_classes_or_images(size: EpisodeSize, said: str) -> None:
    with pytest.raises(UserError, match=said):
        EpisodeDraws(tiny_fewshot().train.labels, size, 0, "tiny")


# --- sources ---


class Counted(Images):
    decoded = 0

    def load(self, rows, draws=None):  # type: ignore[no-untyped-def]
        pixels = super().load(rows, draws)
        Counted.decoded += len(pixels)
        return pixels


def test_kept_images_are_decoded_once() -> None:
    images = patterns(3, 4, 0)
    kept = Kept(Counted(images.pixels, images.labels))
    assert Counted.decoded == 0 and kept.shape == SHAPE and len(kept) == 12
    for rows in (np.array([3, 1, 3]), slice(2, 5), np.array([[0, 1]])):
        assert np.array_equal(kept.load(rows), images.pixels[rows])
    assert Counted.decoded == 5
    first = kept.head(4)
    assert np.array_equal(first.load(slice(None)), images.pixels[:4]) and Counted.decoded == 5
    assert first.labels.tolist() == images.labels[:4].tolist()


def test_rotations_are_classes_of_their_own() -> None:
    images = patterns(3, 4, 0)
    turned = Turned(images)
    assert len(turned) == 48 and sorted(set(turned.labels.tolist())) == list(range(12))
    for row in (0, 5, 22, 47):
        image, times = divmod(row, 4)
        expected = np.rot90(images.pixels[image, 0], times)
        assert np.array_equal(turned.load(np.array([row]))[0, 0], expected)
        assert turned.labels[row] == 4 * images.labels[image] + times
    assert np.array_equal(turned.head(7).load(slice(None)), turned.load(slice(0, 7)))
    assert len(turned.head(7)) == 7 and len(turned.head(None)) == 48
    with pytest.raises(ValueError, match="not square"):
        Turned(Images(np.zeros((1, 1, 4, 5), np.uint8), np.zeros(1, np.int64)))


# --- data sets ---


def test_omniglot_has_four_times_as_many_classes(tmp_path: Path) -> None:
    write_omniglot(tmp_path)
    data = load_dataset("omniglot_fewshot", tmp_path)
    assert data.unseen and data.classes == 12 and data.shape == (1, 28, 28)
    assert len(data.train) == len(data.test) == 48
    one, quarter = data.train.load(np.array([0, 1]))
    assert np.array_equal(np.rot90(one[0]), quarter[0])


def test_vinyals_split_tests_whole_alphabets_and_the_end_of_another(tmp_path: Path) -> None:
    write_omniglot(tmp_path)
    with pytest.raises(UserError, match="none of the alphabets Kannada, Keble"):
        load_dataset("omniglot_vinyals", tmp_path)
    folder = next(tmp_path.rglob("images_evaluation"))
    drawing = next(folder.rglob("*.png"))
    for name in ("Tibetan/character07", "Gurmukhi/character41", "Gurmukhi/character42"):
        (folder / name).mkdir(parents=True)
        shutil.copy(drawing, folder / name / "0001_01.png")
    before, data = (
        load_dataset("omniglot_fewshot", tmp_path),
        load_dataset("omniglot_vinyals", tmp_path),
    )
    assert data.unseen and len(data.test) == 2 * 4 and int(data.test.labels.max()) == 7
    assert len(data.train) == len(before.train) + len(before.test) - 2 * 4


def test_miniimagenet_is_tested_on_the_classes_of_its_test_file(tmp_path: Path) -> None:
    write_miniimagenet(tmp_path / "miniimagenet")
    data = load_dataset("miniimagenet_fewshot", tmp_path)
    assert data.unseen and data.classes == 2 and len(data.train) == 12
    assert data.test.labels.tolist() == [0] * 6 and data.shape == (3, 84, 84)


def test_folders_of_other_classes(tmp_path: Path) -> None:
    write_folders(tmp_path)
    with pytest.raises(UserError, match=r"class n01 is in .*train and in .*val, expected"):
        load_dataset("imagefolder_fewshot", tmp_path)
    for label in ("n01", "n02"):
        (tmp_path / "val" / label).rename(tmp_path / "val" / f"new{label}")
    data = load_dataset("imagefolder_fewshot", tmp_path, 32)
    assert data.unseen and data.classes == 2 and data.shape == (3, 32, 32)
    assert data.test.load(slice(2)).std() > 0


@pytest.mark.skipif(
    not (QTOOL_DATA / "omniglot_105_packbits.npz").is_file(),
    reason="QTOOL_DATA holds no omniglot_105_packbits.npz",
)
def test_real_drawings_of_a_class_are_alike(tmp_path: Path) -> None:
    packed = np.load(QTOOL_DATA / "omniglot_105_packbits.npz", allow_pickle=False)
    pixels, labels, names = (packed[name] for name in ("x", "y", "names"))
    chosen = [*range(3), *range(len(names) - 12, len(names))]
    for row in np.flatnonzero(np.isin(labels, chosen)):
        folder = tmp_path / "omniglot" / str(names[labels[row]])
        folder.mkdir(parents=True, exist_ok=True)
        ink = np.unpackbits(pixels[row], axis=1)[:, :105].astype(bool)
        Image.fromarray(~ink).save(folder / f"{row:05}.png")
    data = load_dataset("omniglot_fewshot", tmp_path)
    assert (data.classes, len(data.train), len(data.test)) == (12, 240, 960)
    draws = EpisodeDraws(data.test.labels, EpisodeSize(5, 5, 5), 0, "test")
    right = []
    for number in range(20):
        rows = draws.rows(0, number)
        x = data.test.load(rows.reshape(-1)).reshape(5, 10, -1) / 255.0
        distance = ((x[:, 5:, None] - x[:, :5].mean(1)) ** 2).sum(-1)
        right.append((distance.argmin(-1) == np.arange(5)[:, None]).mean())
    assert np.mean(right) > 0.5  # by pixels alone; chance is 0.2
