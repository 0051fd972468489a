"""Every reader on files in the published format, and on wrong, truncated and missing ones."""

import gzip
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_sets import (
    cifar_batch,
    picture,
    shard,
    write_folders,
    write_miniimagenet,
    write_omniglot,
    write_pickled_cifar10,
    write_shards,
    write_svhn,
)
from PIL import Image

from qtool.core.errors import UserError
from qtool.data import load_dataset
from qtool.data.batches import Batches, to_batch
from qtool.data.checksums import PUBLISHED
from qtool.data.images import DataSet
from qtool.data.miniimagenet import miniimagenet_split
from qtool.data.names import pack
from qtool.data.omniglot import omniglot_split

WRITERS: dict[str, Callable[[Path], Path]] = {
    "cifar10": write_pickled_cifar10,
    "svhn": write_svhn,
    "imagefolder": write_folders,
    "omniglot": write_omniglot,
    "miniimagenet": write_miniimagenet,
    "webdataset": write_shards,
}


def everything(data: DataSet) -> None:
    """Decode all images."""
    for source in (data.train, data.test):
        assert source.load(slice(None)).shape == (len(source), *source.shape)


def one_line(name: str, folder: Path, message: str) -> None:
    """Assert that reading all of a data set ends in one line that holds `message`."""
    with pytest.raises(UserError, match=message) as caught:
        everything(load_dataset(name, folder))
    assert "\n" not in str(caught.value) and " at 0x" not in str(caught.value)


@pytest.mark.parametrize("python2", [False, True])
def test_cifar10_pickles_are_read_as_pickle_reads_them(tmp_path: Path, python2: bool) -> None:
    path = write_pickled_cifar10(tmp_path, python2)
    data = load_dataset("cifar10", tmp_path)
    expected = pickle.loads(path.read_bytes(), encoding="latin1" if python2 else "bytes")
    wanted = {k if isinstance(k, str) else k.decode(): v for k, v in expected.items()}
    assert len(data.train) == 20 and len(data.test) == 4 and data.classes == 10
    pixels = data.train.load(slice(4, 8))
    assert np.array_equal(pixels.reshape(4, 3072), wanted["data"])
    assert data.train.labels[4:8].tolist() == wanted["labels"]


BLACK = np.zeros((2, 3072), np.uint8)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cbuiltins\nexit\n(tR.", "it asks for 'builtins.exit', .* pickles can run code"),
        (pickle.dumps({b"data": Evil()}, 2), r"it asks for '(posix|nt).mkdir'"),
        (pickle.dumps({b"data": "x"}, 4), "has a SHORT_BINUNICODE|PROTO|FRAME"),
        (pickle.dumps([1, 2], 2), "it holds a list"),
        (pickle.dumps({b"labels": [1]}, 2), "no array 'data'"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.int16)}, 2), "other values than bytes"),
        (pickle.dumps({b"data": BLACK, b"labels": [1, 10]}, 2), "numbers from 0 to 9"),
        (pickle.dumps({b"data": BLACK, b"labels": [1]}, 2), "no list of 2"),
        (b"\x80\x02cnumpy\nndarray\n(tR}b.", "it holds a _Built"),
        (b"\x80\x02}q\x00h\x07.", "truncated or not a pickle"),
        (cifar_batch()[:9000], "truncated or not a pickle"),
        (cifar_batch(python2=True)[:-1], "truncated or not a pickle"),
        (b"", "truncated or not a pickle"),
    ],
)  # fmt: skip
def test_other_pickles_are_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pickled_cifar10(tmp_path).write_bytes(content)
    one_line("cifar10", tmp_path, f"data_batch_2.*{message}")
    assert not (tmp_path / "evil").exists()


def test_svhn_in_its_published_format(tmp_path: Path) -> None:
    from scipy.io import loadmat

    path = write_svhn(tmp_path, extra=True)
    data = load_dataset("svhn", tmp_path)
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    image = loadmat(path)["X"][:, :, :, 4]
    assert np.array_equal(data.train.load(np.array([4]))[0], image.transpose(2, 0, 1))
    extra = load_dataset("svhn_extra", tmp_path)
    assert len(extra.train) == 24 and len(extra.test) == 12
    everything(extra)


def test_folders_are_cut_in_the_middle_and_boxed_in_training(tmp_path: Path) -> None:
    write_folders(tmp_path)
    (tmp_path / "train" / "n01" / "notes.txt").write_text("no image")
    data = load_dataset("imagefolder", tmp_path, 14)
    assert data.train.labels.tolist() == [0, 1] * 4 and data.classes == 2
    assert data.shape == (3, 14, 14)
    # Image 0 is PNG, 24 x 20: the middle 17.5 x 17.5 become 14 x 14.
    with Image.open(tmp_path / "train/n01/0.PNG") as image:
        expected = image.resize(
            (14, 14), Image.Resampling.BILINEAR, (3.25, 1.25, 20.75, 18.75)
        )
    first = data.train.load(np.array([0]))[0]
    assert np.array_equal(first, np.asarray(expected).transpose(2, 0, 1))
    everything(data)
    draws = np.random.default_rng(0).random((8, 4), np.float32)
    whole = data.train.load(np.arange(8), draws)
    for row in range(8):
        one = data.train.load(np.array([row]), draws[row : row + 1])
        assert np.array_equal(one[0], whole[row]) and not np.array_equal(one[0], first)


def test_a_recipe_without_resized_crop_decodes_as_for_evaluation(tmp_path: Path) -> None:
    write_folders(tmp_path)
    train = load_dataset("imagefolder", tmp_path, 14).train
    plain = Batches(train, 8, 0)
    x, labels = next(plain.epoch(0))
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4
    same = {image.numpy().tobytes() for image in to_batch(train, slice(None))[0]}
    assert {image.numpy().tobytes() for image in x} == same
    boxed = next(Batches(train, 8, 0, ("resized_crop",)).epoch(0))[0]
    assert not {image.numpy().tobytes() for image in boxed} & same
    two = next(Batches(train, 8, 0, ("resized_crop", "flip"), workers=2).epoch(3))
    here = next(Batches(train, 8, 0, ("resized_crop", "flip")).epoch(3))
    assert np.array_equal(two[0].numpy(), here[0].numpy())


def test_imagenette_by_its_names(tmp_path: Path) -> None:
    write_folders(tmp_path / "imagenette2-160")
    data = load_dataset("imagenette", tmp_path)
    assert (
        data.shape == (3, 128, 128) and len(data.train) == 8 and len(data.train.head(3)) == 3
    )


def test_omniglot_is_small_and_white_on_black(tmp_path: Path) -> None:
    write_omniglot(tmp_path)
    data = load_dataset("omniglot", tmp_path)
    assert data.classes == 3 and data.shape == (1, 28, 28)
    assert len(data.train) == 9 and data.test.labels.tolist() == [0, 1, 2]
    image = data.train.load(np.array([0]))[0, 0]
    assert image[1:4, 14].min() > 250 and image[10:].max() < 5
    evaluation = omniglot_split(tmp_path, "evaluation")
    assert evaluation.labels.tolist() == [0, 1, 2] * 4
    with pytest.raises(UserError, match="unknown split of omniglot 'test'"):
        omniglot_split(tmp_path, "test")


def test_miniimagenet_splits_classes_and_images(tmp_path: Path) -> None:
    write_miniimagenet(tmp_path / "miniimagenet")
    data = load_dataset("miniimagenet", tmp_path)
    assert data.train.labels.tolist() == [0, 1] * 5 and data.test.labels.tolist() == [0, 1]
    assert data.classes == 2 and data.shape == (3, 84, 84)
    with Image.open(tmp_path / "miniimagenet/images/na5.jpg") as image:
        assert np.array_equal(
            data.test.load(slice(1))[0].transpose(1, 2, 0), np.asarray(image)
        )
    assert len(miniimagenet_split(tmp_path, "test")) == 6


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "svhn cut": ("svhn", cut, "train_32x32.mat is truncated or no MATLAB 5 file"),
    "svhn text": ("svhn", lambda p: p.write_text("no" * 200), "truncated or no MATLAB 5 file"),
    "svhn empty": ("svhn", lambda p: p.write_bytes(b""), "truncated or no MATLAB 5 file"),
    "svhn gone": ("svhn", Path.unlink, "missing: .*train_32x32.mat .format 2 from"),
    "cifar gone": ("cifar10", Path.unlink, "missing: .*data_batch_2 .a batch of cifar-10-py"),
    "image cut": (
        "imagefolder", lambda p: cut(p, 0.9),
        "image .*train/n02/1.JPEG is damaged: image file is truncated"),
    "image text": (
        "imagefolder", lambda p: p.write_text("text"), "1.JPEG is damaged: no image format"),
    "no class": (
        "imagefolder", lambda p: p.parent.rename(p.parents[1] / ".n"),
        "val/n02: class without training images"),
    "no test": (
        "imagefolder", lambda p: (p.parents[2] / "val").rename(p.parents[2] / "x"),
        "imagefolder: .* has no folder val or test"),
    "no train": (
        "imagefolder", lambda p: p.parents[1].rename(p.parents[2] / "x"),
        "has no folder train, expected train/CLASS"),
    "empty class": (
        "imagefolder", lambda p: (p.parents[1] / "z").mkdir(), "train/z holds no images"),
    "drawing cut": ("omniglot", cut, "image .*A/character02/3.png is damaged"),
    "no drawings": (
        "omniglot", lambda p: p.parents[2].rename(p.parents[3] / "x"),
        "images_background is not readable: No such file"),
    "csv gone": ("miniimagenet", Path.unlink, "train.csv is not readable: No such file"),
    "csv other": (
        "miniimagenet", lambda p: p.write_text("a,b\n1,2\n"), "expected filename,label and"),
    "csv cut": (
        "miniimagenet", lambda p: p.write_text("filename,label\nnc0.jpg\n"),
        "train.csv, line 2: got 'nc0.jpg', expected filename,label"),
    "csv escapes": (
        "miniimagenet", lambda p: p.write_text("filename,label\n../x.jpg,c\n"), "line 2: got"),
    "csv more": (
        "miniimagenet", lambda p: p.write_text("filename,label\nno.jpg,c\n"),
        "missing: .*images/no.jpg, listed in .*train.csv"),
    "csv bytes": ("miniimagenet", lambda p: p.write_bytes(b"\xff\xfe"), "is no csv file"),
    "shard cut": ("webdataset", cut, "train-0001.tar is truncated"),
    "shard end": ("webdataset", lambda p: cut(p, 0.2), "train-0001.tar is truncated"),
    "shard empty": ("webdataset", lambda p: p.write_bytes(b""), "truncated or no tar file"),
    "shard packed": (
        "webdataset", lambda p: p.write_bytes(gzip.compress(os.urandom(2000))),
        "no tar header at byte 0 .it is compressed.; expected an uncompressed"),
    "shard zeros": ("webdataset", lambda p: p.write_bytes(bytes(2048)), "holds no samples"),
    "no label": (
        "webdataset", lambda p: p.write_bytes(shard([{"png": picture(0)}])),
        "sample of ./set/0000.png has no class number"),
    "no image": (
        "webdataset", lambda p: p.write_bytes(shard([{"cls": b"1"}])),
        "sample of ./set/0000.cls has no image"),
    "vast label": (
        "webdataset", lambda p: p.write_bytes(shard([{"png": picture(0), "cls": b"9" * 30}])),
        "0000.cls holds no class number"),
    "bad label": (
        "webdataset", lambda p: p.write_bytes(shard([{"png": picture(0), "cls": b"dog"}])),
        "0000.cls holds no class number"),
    "bad image": (
        "webdataset", lambda p: p.write_bytes(shard([{"png": b"text", "cls": b"1"}])),
        "image at byte 1536 of .*train-0001.tar is damaged: no image format"),
    "no shards": (
        "webdataset", lambda p: [q.unlink() for q in p.parent.glob("*val*")],
        "has no shards for test, expected val/.*.tar or"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_and_missing_files_are_one_line(tmp_path: Path, case: str) -> None:
    name, damage, message = DAMAGES[case]
    damage(WRITERS[name](tmp_path))
    one_line(name, tmp_path, message)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_flipped_and_missing_bytes_are_one_line_or_harmless(
    tmp_path: Path, name: str, seed: int
) -> None:
    path, rng = WRITERS[name](tmp_path), np.random.default_rng(seed)
    good, refused = path.read_bytes(), 0
    for round_ in range(200 if seed else 8):
        bad = bytearray(good[: rng.integers(1, len(good))] if round_ % 2 else good)
        for place in rng.integers(0, min(len(bad), (300, len(bad))[round_ % 3 > 0]), 9):
            bad[place] = rng.integers(256)
        path.write_bytes(bad)
        try:
            everything(load_dataset(name, tmp_path))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused


@pytest.mark.parametrize("name", [*WRITERS, "fashion_mnist"])
def test_an_empty_folder_is_one_line(tmp_path: Path, name: str) -> None:
    one_line(name, tmp_path, "data file|data folder|data set")
    one_line(name, tmp_path / "nowhere", "does not exist")


@pytest.mark.parametrize("name", ["data_batch_1", "t10k-labels-idx1-ubyte.gz"])
def test_a_file_of_the_published_size_has_the_published_sum(tmp_path: Path, name: str) -> None:
    from qtool.data.checksums import require_published

    sizes = [size for known, size in PUBLISHED if known == name]
    path = tmp_path / name
    with open(path, "wb") as file:
        file.truncate(sizes[0])
    with pytest.raises(UserError, match=f"{name} is damaged: MD5 .*, published is .*again"):
        require_published(path)
    with open(path, "ab") as file:
        file.write(b"x")
    require_published(path)


def test_names_are_packed() -> None:
    names = pack([[b"a", b"bcd"], [], [b"", "ä".encode()]])
    assert [names[i] for i in range(len(names))] == [b"a", b"bcd", b"", "ä".encode()]
    assert len(pack([])) == 0


QTOOL_DATA = Path(os.environ.get("QTOOL_DATA", ""))


@pytest.mark.skipif(
    not (QTOOL_DATA / "imagenette_160.zip").is_file(),
    reason="QTOOL_DATA holds no imagenette_160.zip",
)
def test_real_photographs(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(QTOOL_DATA / "imagenette_160.zip") as archive:
        kept = [name for name in archive.namelist() if name.endswith(".webp")][::40]
        for name in kept:
            archive.extract(name, tmp_path)
    data = load_dataset("imagenette", tmp_path, 64)
    everything(data)
    x, _ = to_batch(data.test, slice(0, 8))
    assert data.classes == 10 and 0.2 < float(x.mean()) < 0.8 and float(x.std()) > 0.15


@pytest.mark.skipif(
    not (QTOOL_DATA / "miniimagenet_subset.zip").is_file(),
    reason="QTOOL_DATA holds no miniimagenet_subset.zip",
)
def test_real_miniimagenet_lists(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(QTOOL_DATA / "miniimagenet_subset.zip") as archive:
        for split in ("train", "val", "test"):
            text = archive.read(f"{split}.csv").decode()
            lines = text.splitlines()
            (tmp_path / f"{split}.csv").write_text("\n".join(lines[:1] + lines[1::400]) + "\n")
            for line in lines[1::400]:
                archive.extract(f"images/{line.split(',')[0]}", tmp_path)
    for split in ("train", "val", "test"):
        images = miniimagenet_split(tmp_path, split)
        pixels = images.load(slice(None))
        assert pixels.shape == (len(images), 3, 84, 84) and pixels.std() > 30


@pytest.mark.skipif(
    not (QTOOL_DATA / "omniglot_105_packbits.npz").is_file(),
    reason="QTOOL_DATA holds no omniglot_105_packbits.npz",
)
def test_real_drawings(tmp_path: Path) -> None:
    packed = np.load(QTOOL_DATA / "omniglot_105_packbits.npz", allow_pickle=False)
    ink = np.unpackbits(packed["x"][:40], axis=2)[:, :, :105].astype(bool)
    for row, (image, label) in enumerate(zip(ink, packed["y"][:40], strict=True)):
        folder = tmp_path / "omniglot" / str(packed["names"][label])
        folder.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        Image.fromarray(~image).save(out, "PNG")
        (folder / f"{row:02}.png").write_bytes(out.getvalue())
    source = omniglot_split(tmp_path, "background")
    images, share = source.load(slice(None)), ink.mean((1, 2))[source.places]
    assert np.corrcoef(images.mean((1, 2, 3)), share)[0, 1] > 0.99
    assert abs(images.mean() / 255 - share.mean()) < 0.01
