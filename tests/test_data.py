"""The embedded images, the IDX reader, and the full set where it is at hand."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from cifar import write_cifar10

from qtool.core.errors import UserError
from qtool.data import load_dataset
from qtool.data.fashion_mnist import EMBEDDED, make_subset
from qtool.data.idx import encode_idx, read_idx
from qtool.data.images import to_float

FULL = os.environ.get("QTOOL_DATA")
needs_full = pytest.mark.skipif(
    FULL is None or not (Path(FULL) / "fashion-mnist").is_dir(),
    reason="QTOOL_DATA holds no fashion-mnist folder",
)


def test_embedded_subset_is_balanced_and_small() -> None:
    data = load_dataset("fashion_mnist_12k")
    assert data.train.pixels.shape == (12_000, 1, 28, 28)
    assert data.test.pixels.shape == (2_000, 1, 28, 28)
    assert np.bincount(data.train.labels).tolist() == [1200] * 10
    assert np.bincount(data.test.labels).tolist() == [200] * 10
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= 6_000_000
    assert (EMBEDDED / "LICENSE").read_text().startswith("The MIT License")


def test_pixels_become_their_own_grid() -> None:
    x = to_float(np.arange(256, dtype=np.uint8))
    step = np.float32(1 / 255)
    assert np.array_equal(np.rint(x / step), np.arange(256))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path: Path, suffix: str) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / f"x-ubyte{suffix}"
    data = encode_idx(array)
    path.write_bytes(gzip.compress(data) if suffix else data)
    assert np.array_equal(read_idx(path), array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\1\0\0\0\0", "not an IDX file of bytes"),
        (b"\0\0\x08\x01\0\0\0\5abc", "got 11 bytes, expected 13"),
        (b"PK\3\4 something else", "not an IDX file"),
    ],
)
def test_idx_refuses_other_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_idx(path)


def test_labels_must_fit_images(tmp_path: Path) -> None:
    for split in ("train", "t10k"):
        images = np.zeros((3, 28, 28), np.uint8)
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(encode_idx(images))
        labels = np.zeros(2, np.uint8)
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(encode_idx(labels))
    with pytest.raises(UserError, match="does not fit labels"):
        load_dataset("fashion_mnist_12k", tmp_path)


@needs_full
def test_full_set_in_its_published_format() -> None:
    data = load_dataset("fashion_mnist")
    assert len(data.train) == 60_000 and len(data.test) == 10_000


@needs_full
@pytest.mark.nightly
def test_embedded_subset_comes_from_the_full_set(tmp_path: Path) -> None:
    assert FULL is not None
    make_subset(Path(FULL), tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read_idx(path), read_idx(EMBEDDED / path.name))


@pytest.mark.parametrize("nested", ["", "cifar-10-batches-bin"])
def test_cifar10_in_its_published_format(tmp_path: Path, nested: str) -> None:
    folder = write_cifar10(tmp_path / nested)
    data = load_dataset("cifar10", tmp_path)
    assert data.train.pixels.shape == (100, 3, 32, 32) and len(data.test) == 20
    assert data.test.labels.tolist() == [*range(10), *range(10)] and data.classes == 10
    raw = (folder / "test_batch.bin").read_bytes()
    # Record 3: label, then planes of red, green and blue, row by row.
    position = 3 * 3073 + 1 + 2 * 1024 + 5 * 32 + 7
    assert data.test.pixels[3, 2, 5, 7] == raw[position]


def test_cifar10_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTOOL_DATA", str(write_cifar10(tmp_path)))
    assert len(load_dataset("cifar10").train) == 100
    monkeypatch.delenv("QTOOL_DATA")
    with pytest.raises(UserError, match="cifar10: no folder given; pass --data DIR or set"):
        load_dataset("cifar10")
    with pytest.raises(UserError, match="does not exist"):
        load_dataset("cifar10", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data file missing: .*data_batch_3.bin .cifar-10-binary"),
        (b"", "got 0 bytes, expected a multiple of 3073"),
        (bytes(3072), "got 3072 bytes, .*truncated or not CIFAR-10's binary version"),
        (bytes(3073) + bytes([10]) + bytes(3072), "record 1 has label 10, expected 0 to 9"),
    ],
)
def test_cifar10_refuses_damaged_files(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = write_cifar10(tmp_path) / "data_batch_3.bin"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_dataset("cifar10", tmp_path)
