"""WebDataset shards: where images are, in which order an epoch reads them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_sets import picture, write_shards

from qtool.data import load_dataset
from qtool.data.batches import Batches
from qtool.data.images import Source
from qtool.data.shards import index_shard


def test_shards_are_read_at_their_places(tmp_path: Path) -> None:
    write_shards(tmp_path, shards=40)
    data = load_dataset("webdataset", tmp_path, 16)
    assert len(data.train) == len(data.test) == 200 and data.classes == 3
    assert data.train.labels[:10].tolist() == [0, 1, 2, 0, 1, 1, 2, 0, 1, 2]
    write_one = tmp_path / "one" / "train" / "a"
    write_one.mkdir(parents=True)
    for row in (0, 7, 199):
        (write_one / f"{row:03}.png").write_bytes(picture(row))
    (tmp_path / "one" / "val").symlink_to("train")
    files = load_dataset("imagefolder", tmp_path / "one", 16)
    rows = np.array([199, 0, 7])
    assert np.array_equal(data.train.load(rows), files.train.load(np.array([2, 0, 1])))
    draws = np.random.default_rng(0).random((3, 4), np.float32)
    boxed = files.train.load(np.array([2, 0, 1]), draws)
    assert np.array_equal(data.train.load(rows, draws), boxed)


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_an_index_says_what_tarfile_says(tmp_path: Path, form: int) -> None:
    path, rng = tmp_path / "a.tar", np.random.default_rng(0)
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("set.one")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number in range(30):
            key = f"set.one/{'long' * (number % 3)}{number}"
            image = ("jpeg" if number % 2 else "JPG"), rng.bytes(rng.integers(1, 2000))
            label = ("cls", b" %d\n" % number), ("json", b'{"label": 5}')
            for kind, data in [("seg.png", b"x"), image, *label][:: 1 - 2 * (number % 2)]:
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size, info.mtime = len(data), 0.5
                tar.addfile(info, io.BytesIO(data))
    found = index_shard(path)
    with tarfile.open(path) as tar:
        shown = [m for m in tar if m.name.lower().endswith(("jpg", "jpeg"))]
    assert found.offsets.tolist() == [m.offset_data for m in shown]
    assert found.sizes.tolist() == [m.size for m in shown]
    assert found.labels.tolist() == list(range(30))


class Counting:
    """A source that remembers the rows it was asked for."""

    def __init__(self, source: Source) -> None:
        self.source, self.rows = source, []

    def __getattr__(self, name: str):
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def load(self, rows, draws=None):
        self.rows += rows.tolist()
        return np.zeros((len(rows), 1, 1, 1), np.uint8)


def test_an_epoch_of_shards_takes_a_few_at_a_time_and_resumes_without_the_skipped(
    tmp_path: Path,
) -> None:
    write_shards(tmp_path, shards=40)
    source = Counting(load_dataset("webdataset", tmp_path, 16).train)
    whole = [labels.tolist() for _, labels in Batches(source, 10, 0).epoch(1)]
    order = np.array(source.rows)
    assert sorted(order.tolist()) == list(range(200))
    windows = [set((order[start : start + 80] // 5).tolist()) for start in (0, 80, 160)]
    assert [len(window) for window in windows] == [16, 16, 8]
    assert windows[0] != set(range(16)) and not windows[0] & windows[1]
    source.rows = []
    late = [labels.tolist() for _, labels in Batches(source, 10, 0).epoch(1, start=15)]
    assert late == whole[15:] and np.array_equal(source.rows, order[150:])
