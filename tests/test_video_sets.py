"""Annotation files of videos in their published formats, and what is wrong with them."""

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from videos import DEMO, HEIGHT, needs_demo, number_of, write_frames, write_video

from qtool.core.errors import UserError
from qtool.data import load_dataset
from qtool.data.batches import Batches
from qtool.data.images import DataSet
from qtool.data.video import VideoSource

KINETICS_HEAD = "label,youtube_id,time_start,time_end,split,is_cc\n"


def load(name: str, folder: Path, size: int = HEIGHT, frames: int = 4) -> DataSet:
    return load_dataset(name, folder, image_size=size, frames=frames)


def seen(source: VideoSource, row: int, draws: np.ndarray | None = None) -> list[int]:
    """Return the numbers that the frames of a clip show, looking at whole frames."""
    frames: list[np.ndarray] = []
    real = source.read

    def spy(clip, choose):
        frames.extend(real(clip, choose))
        return frames

    VideoSource(
        source.clips, source.labels, source.listed, spy, source.image_size, source.frames
    ).load(np.array([row]), draws)
    return [number_of(frame) for frame in frames]


def write_lists(folder: Path, train: str, val: str, kind: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"set_train_list{kind}.txt").write_text(train)
    (folder / f"set_val_list{kind}.txt").write_text(val)
    return folder


@pytest.mark.parametrize(
    ("train", "val", "base", "name"),
    [
        # Video-Dataset-Loading-Pytorch: first and last frame.
        ("run/a 1 16 0\nrun/b 5 20 2\n", "run/a 9 16 1\n", "", "img_{:05}.jpg"),
        # mmaction2's rawframes: how many frames.
        ("run/a 16 0\n# note\n\nrun/b 20 2\n", "run/a 16 1", "rawframes_{}", "img_{:05}.jpg"),
        ("run/a;1;16;0\nrun/b;5;20;2\n", "run/a;9;16;1\n", "frames", "{:06}.png"),
        ("run/a, 16, 0\nrun/b, 20, 2\n", "run/a, 16, 1\n", "{}", "image_{}.jpg"),
    ],
)
def test_folders_of_frames(tmp_path: Path, train: str, val: str, base: str, name: str) -> None:
    for split in ("train", "val"):
        for folder in ("run/a", "run/b"):
            write_frames(tmp_path / base.format(split) / folder, 20, name)
    data = load("video_frames", write_lists(tmp_path, train, val))
    assert data.classes == 3 and data.shape == (3, HEIGHT, HEIGHT)
    assert data.train.labels.tolist() == [0, 2] and data.test.labels.tolist() == [1]
    assert len(data.train) == 2 and data.train.frames == 4 and data.train.draws == 6
    # File number 1 shows 0: frames 2, 6, 10, 14 are in the middle of four segments of 16.
    assert seen(data.train, 0) == [2, 6, 10, 14]
    late = "5" in train
    assert seen(data.train, 1) == ([6, 10, 14, 18] if late else [2, 7, 12, 17])
    assert seen(data.test, 0) == ([9, 11, 13, 15] if late else [2, 6, 10, 14])


def test_a_list_in_the_folder_of_each_split(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("test", 16)):
        write_frames(tmp_path / split / "run/0001", count)
        (tmp_path / split / "annotations.txt").write_text(f"run/0001 1 {count} 0\n")
    data = load("video_frames", tmp_path)
    assert seen(data.train, 0) == [1, 3, 5, 7] and seen(data.test, 0) == [2, 6, 10, 14]


def test_frames_may_be_numbered_from_0(tmp_path: Path) -> None:
    write_frames(tmp_path / "a", 16, "{:04}.jpg", first=0)
    assert (
        seen(load("video_frames", write_lists(tmp_path, "a 16 0", "a 16 0")).test, 0)[0] == 2
    )


@pytest.mark.parametrize("base", ["", "videos", "videos_{}"])
def test_video_files(tmp_path: Path, base: str) -> None:
    for split in ("train", "val"):
        write_video(tmp_path / base.format(split) / "my runs/a.mp4", count=16)
    data = load("video_files", write_lists(tmp_path, "my runs/a.mp4 1", "my runs/a.mp4 0"))
    assert data.classes == 2 and seen(data.test, 0) == [2, 6, 10, 14]


def test_lists_of_both_kinds_in_one_folder(tmp_path: Path) -> None:
    write_frames(tmp_path / "rawframes/a", 4)
    write_video(tmp_path / "videos/a.mp4", count=8)
    write_lists(tmp_path, "a 4 0", "a 4 0", "_rawframes")
    write_lists(tmp_path, "a.mp4 0", "a.mp4 0", "_videos")
    assert seen(load("video_frames", tmp_path).test, 0) == [0, 1, 2, 3]
    assert seen(load("video_files", tmp_path).test, 0) == [1, 3, 5, 7]


def write_kinetics(folder: Path) -> Path:
    """Write two classes; a video of training and one of validation are not there."""
    for stem in ("idA_000010_000020", "train/idB_000000_000010", "val/sub/idC"):
        write_video(folder / f"{stem}.mp4", count=16)
    (folder / "kinetics_train.csv").write_text(
        KINETICS_HEAD + "yoga,idB,0,10,train,0\n"
        'air drumming,idA,10,20,train,0\n"a, b",gone,5,15,train,0\n'
    )
    (folder / "kinetics_val.csv").write_text(KINETICS_HEAD + "yoga,idC,3,13,validate,0\n")
    return folder


def test_kinetics(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match="1 of the 3 videos of .*train.csv are not .*gone_0000"
    ):
        data = load("kinetics", write_kinetics(tmp_path))
    # Classes are sorted by name.
    assert data.classes == 2 and data.train.labels.tolist() == [1, 0]
    assert data.test.labels.tolist() == [1] and seen(data.test, 0) == [2, 6, 10, 14]


def test_mini_kinetics(tmp_path: Path) -> None:
    root = write_kinetics(tmp_path / "kinetics")
    (root / "train_ytid_list.txt").write_text("idB\n")
    (root / "val_ytid_list.txt").write_text("idC\n")
    (root / "annotations").mkdir()
    for path in root.glob("*.csv"):
        path.rename(root / "annotations" / path.name)
    data = load("kinetics", tmp_path)
    assert data.classes == 1 and len(data.train) == len(data.test) == 1


def write_activitynet(folder: Path, **changes: object) -> Path:
    database = {
        "one": {"subset": "training", "annotations": [
            {"label": "Surfing", "segment": [1.0, 2.6]},
            {"label": "Archery", "segment": [0.8, 0.0]},
        ]},
        "two": {"subset": "validation", "annotations": [
            {"label": "Surfing", "segment": [0.0, 99.5]}
        ]},
        "three": {"subset": "testing", "annotations": []},
        **changes,
    }  # fmt: skip
    write_video(folder / "v1-3/train_val/v_one.mp4", count=30)
    write_video(folder / "v1-3/train_val/two.mkv", count=20)
    path = folder / "activity_net.v1-3.min.json"
    path.write_text(json.dumps({"database": database, "version": "VERSION 1.3"}))
    return folder


def test_activitynet_has_a_clip_for_every_segment(tmp_path: Path) -> None:
    data = load("activitynet", write_activitynet(tmp_path))
    assert data.classes == 2 and data.train.labels.tolist() == [1, 0]
    assert seen(data.train, 0) == [12, 16, 20, 24] and seen(data.train, 1) == [1, 3, 5, 7]
    assert data.test.labels.tolist() == [1] and seen(data.test, 0) == [2, 7, 12, 17]


def test_pixels_of_a_batch_of_clips(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", count=16)
    write_video(tmp_path / "b.mp4", count=2, step=4)
    lists = write_lists(tmp_path, "a.mp4 0\nb.mp4 1\na.mp4 1\n", "a.mp4 0\n")
    train = load("video_files", lists).train
    pixels = train.load(np.array([1, 0]))
    assert pixels.shape == (8, 3, HEIGHT, HEIGHT) and pixels.dtype == np.uint8
    assert np.array_equal(pixels[:4], train.load(slice(1, 2)))
    # Two frames for four segments.
    assert np.array_equal(pixels[0], pixels[1]) and not np.array_equal(pixels[0], pixels[2])
    # The centre of 28 of 48 pixels starts at 10: stripe 2, bit 2, is left of its middle.
    bright = pixels[4:, :, HEIGHT // 2 :, HEIGHT // 2 - 10 : HEIGHT // 2 - 4].mean((1, 2, 3))
    assert [value > 128 for value in bright] == [bool(n & 4) for n in (2, 6, 10, 14)]
    assert len(train.head(2)) == 2 and len(train.head(None)) == 3
    assert np.array_equal(pickle.loads(pickle.dumps(train)).load(slice(0, 1)), pixels[4:])


def test_draws_decide_frames_and_crop(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", "libx264", count=40)
    train = load("video_files", write_lists(tmp_path, "a.mp4 0\n" * 3, "a.mp4 0")).train
    draws = np.random.default_rng(0).random((3, train.draws + 5), np.float32)
    pixels = train.load(np.arange(3), draws)
    assert np.array_equal(train.load(np.array([2]), draws[2:]), pixels[8:])
    frames = [seen(train, row, draws[row : row + 1]) for row in range(3)]
    assert len({tuple(numbers) for numbers in frames}) == 3
    for numbers in frames:
        assert [number // 10 for number in numbers] == [0, 1, 2, 3]
    # All frames of a clip have the same crop: with equal frames they are equal.
    lists = write_lists(tmp_path / "b", "../a.mp4 0", "../a.mp4 0")
    still = load("video_files", lists, frames=1)
    same = np.concatenate([np.zeros((1, 1), np.float32), draws[:1, 4:6]], 1)
    crops = still.train.load(slice(0, 1), same)
    many = np.concatenate([np.zeros((1, 4), np.float32), draws[:1, 4:6]], 1)
    assert np.array_equal(train.load(slice(0, 1), many)[:1], crops)


def test_batches_of_clips_are_the_same_in_a_worker(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", "libx264", count=40, b_frames=2)
    listed = write_lists(tmp_path, "".join(f"a.mp4 {n}\n" for n in range(4)), "a.mp4 0")
    train = load("video_files", listed).train
    epochs = []
    for workers in (0, 1):
        batches = Batches(train, 2, 7, ("flip",), workers)
        epochs.append([(x.numpy(), y.tolist()) for x, y in batches.epoch(0)])
    assert len(epochs[0]) == 2
    for (x, labels), (other, same) in zip(*epochs, strict=True):
        assert x.shape == (8, 3, HEIGHT, HEIGHT) and np.array_equal(x, other)
        assert labels == same and len(labels) == 2


@pytest.mark.parametrize(
    ("name", "train", "val", "message"),
    [
        ("video_frames", "a 1 4 0\na 4 0\n", "a 4 0", "train_list.txt line 2: got 'a 4 0', "),
        ("video_frames", "a 4 x\n", "a 4 0", "line 1: got 'a 4 x', expected 'folder first"),
        ("video_frames", "a 4 0\n", "\na 4 1", "val_list.txt line 2: class 1, expected 0 to"),
        ("video_frames", "a 4 0\nb 4 0\n", "a 4 0", r"line 2: .*b does not exist"),
        ("video_frames", "a 5 4 0\n", "a 1 4 0", "line 1: .*a has no frames, from number 5"),
        ("video_frames", "a 4 0", "", "val_list.txt: lists no videos"),
        ("video_frames", "empty 4 0", "a 4 0", "empty: no numbered pictures such as img"),
        ("video_frames", "\udcff", "a 4 0", "train_list.txt are not readable text"),
        ("video_files", "a.mp4 -1", "a.mp4 0", "got 'a.mp4 -1', expected 'file class'"),
        ("video_files", "gone.mp4 0", "a.mp4 0", "line 1: .*gone.mp4 does not exist"),
    ],
)
def test_lists_with_mistakes(
    tmp_path: Path, name: str, train: str, val: str, message: str
) -> None:
    write_frames(tmp_path / "a", 4)
    (tmp_path / "empty").mkdir()
    write_lists(tmp_path, "", val)
    (tmp_path / "set_train_list.txt").write_bytes(train.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"no annotations \*train\*.txt; \*.txt there: none"),
        (["annotations.txt"], "there: annotations.txt"),
        (["train1.txt", "train2.txt"], "several annotations train1.txt, train2.txt, expected"),
        (["train.txt"], r"no annotations \*val\*.txt or \*test\*.txt"),
    ],
)
def test_lists_that_cannot_be_told(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_text("a 4 0\n")
    with pytest.raises(UserError, match=message):
        load("video_frames", tmp_path)


def damaged_frame(folder: Path) -> None:
    path = folder / "a/img_00003.jpg"
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "a/img_00002.jpg").unlink(),
            "img_00002.jpg is not readable: No such file",
        ),
        (damaged_frame, "img_00003.jpg is damaged: .*[Tt]runcated"),
        (lambda folder: (folder / "a/img_00001.jpg").write_text("no"), "00001.jpg is damaged"),
    ],
)
def test_frames_that_are_missing_or_damaged(tmp_path: Path, damage, message: str) -> None:
    write_frames(tmp_path / "a", 4)
    data = load("video_frames", write_lists(tmp_path, "a 4 0\n", "\n\na 4 0\n"))
    damage(tmp_path)
    with pytest.raises(UserError, match=rf"{message}.* \(.*set_val_list.txt line 3\)$"):
        data.test.load(slice(None))


def test_a_damaged_video_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("this is no video")
    data = load("video_files", write_lists(tmp_path, "a.mp4 0", "a.mp4 0"))
    with pytest.raises(UserError, match=r"a.mp4 is damaged .* \(.*train_list.txt line 1\)"):
        data.train.load(np.array([0]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("label,youtube_id,time_start\nyoga,idA,1\n", "line 1: column time_end is missing"),
        (KINETICS_HEAD + "yoga,idA,1.5,3\n", "line 2: got yoga,idA,1.5,3, expected label,"),
        (KINETICS_HEAD + "yoga,idA\n", "line 2: got yoga,idA,,, expected label,"),
        (
            KINETICS_HEAD + "yoga,idX,0,1\n",
            "none of the 1 videos .* such as idX_000000_000001",
        ),
        (
            KINETICS_HEAD + "new,idA,10,20\n",
            "line 2: .*mp4 has class 'new', which no training",
        ),
        (KINETICS_HEAD, "none of the 0 videos"),
        (KINETICS_HEAD + '"yoga,idA\n', "not readable: unexpected end of data"),
    ],
)
def test_kinetics_with_mistakes(tmp_path: Path, rows: str, message: str) -> None:
    write_kinetics(tmp_path)
    (tmp_path / "kinetics_val.csv").write_text(rows)
    with warnings.catch_warnings(), pytest.raises(UserError, match=message):
        warnings.simplefilter("ignore")
        load("kinetics", tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"subset": "training"}, "video odd: expected a subset, and annotations"),
        ([], "video odd: expected"),
        ({"subset": "training", "annotations": [{"label": "A", "segment": [1]}]}, "video odd"),
        (
            {"subset": "training", "annotations": [{"label": "A", "segment": "ab"}]},
            "video odd",
        ),
    ],
)
def test_activitynet_with_mistakes(tmp_path: Path, entry: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("activitynet", write_activitynet(tmp_path, odd=entry))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not readable JSON"), ("{}", "no object 'database', not ActivityNet's format")],
)
def test_activitynet_without_a_database(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "activity_net.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load("activitynet", tmp_path)


def test_too_many_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="setting frames: got 300, expected 1 to 256, or 0"):
        load("video_files", tmp_path, frames=300)


@needs_demo
def test_demo_folders_of_frames(tmp_path: Path) -> None:
    listed = (DEMO / "demo_dataset/annotations.txt").read_text()
    (tmp_path / "frames").symlink_to(DEMO / "demo_dataset")
    data = load("video_frames", write_lists(tmp_path, listed, listed), 0, 0)
    assert data.train.labels.tolist() == [0, 0, 1, 1] and data.shape == (3, 224, 224)
    pixels = data.test.load(slice(None))
    assert pixels.shape == (32, 3, 224, 224) and len(np.unique(pixels, axis=0)) == 32


@needs_demo
def test_demo_videos(tmp_path: Path) -> None:
    names = [path.name for path in sorted(DEMO.glob("mmaction2_*"))]
    (tmp_path / "videos").symlink_to(DEMO)
    listed = "".join(f"{name} {label}\n" for label, name in enumerate(names))
    data = load("video_files", write_lists(tmp_path, listed, listed), 64, 3)
    assert len(names) == 5 and data.classes == 5
    assert data.test.load(slice(None)).shape == (15, 3, 64, 64)
