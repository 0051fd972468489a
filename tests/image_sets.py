"""Small data sets in published formats, written by the tests themselves."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from qtool.data.cifar10 import PICKLED_TEST, PICKLED_TRAIN


def picture(number: int, size: tuple[int, int] = (24, 20), kind: str = "PNG") -> bytes:
    """Return an image file, (width, height) `size`, of a colour ramp that `number` shifts."""
    wide, tall = size
    ramp = np.add.outer(np.arange(tall) * 5, np.arange(wide) * 3)[..., None]
    pixels = (ramp + np.array([0, 40, 80]) + 7 * number).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def cifar_batch(count: int = 4, python2: bool = False) -> bytes:
    """Return a batch file, as Python 3 or as the publisher's Python 2 writes it."""
    rng = np.random.default_rng(count)
    data, labels = (
        rng.integers(0, 256, (count, 3072), np.uint8),
        [n % 10 for n in range(count)],
    )
    if not python2:
        return pickle.dumps({b"data": data, b"labels": labels, b"filenames": [b"a.png"]}, 2)
    raw, size = data.tobytes(), data.size
    return b"".join(
        [
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labels",
            b"q\x04]q\x05(", *(b"K" + bytes([label]) for label in labels), b"eU\x04dataq\x06",
            b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b",
            b"\x87Rq\t(K\x01K", bytes([count]), b"M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00",
            b"K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T",
            size.to_bytes(4, "little"), raw, b"tbU\tfilenamesq\x0c]q\r(U\x05a.pngeu.",
        ]
    )  # fmt: skip


def write_pickled_cifar10(folder: Path, python2: bool = False) -> Path:
    for name in (*PICKLED_TRAIN, *PICKLED_TEST):
        write(folder / "cifar-10-batches-py" / name, cifar_batch(python2=python2))
    return folder / "cifar-10-batches-py" / "data_batch_2"


def write_svhn(folder: Path, extra: bool = False) -> Path:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    for split in ("train", "test", "extra")[: 3 if extra else 2]:
        images = rng.integers(0, 256, (32, 32, 3, 12), np.uint8)
        labels = np.arange(12, dtype=np.uint8)[:, None] % 10 + 1
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return folder / "train_32x32.mat"


def write_folders(folder: Path, count: int = 4) -> Path:
    """Two classes, JPEG and PNG and WebP, under train and val."""
    number = 0
    for split in ("train", "val"):
        for label in ("n01", "n02"):
            for index in range(count):
                kind = ("PNG", "JPEG", "WEBP")[index % 3]
                number += 1
                data = picture(number, (24 + index, 20), kind)
                write(folder / split / label / f"{index}.{kind}", data)
    return folder / "train" / "n02" / "1.JPEG"


def write_omniglot(folder: Path) -> Path:
    for split in ("images_background", "images_evaluation"):
        for character in ("A/character01", "A/character02", "B/character01"):
            for index in range(4):
                ink = np.ones((105, 105), bool)
                ink[10 * index : 10 * index + 20, 50:60] = False
                out = io.BytesIO()
                Image.fromarray(ink).save(out, "PNG")
                write(folder / "omniglot" / split / character / f"{index}.png", out.getvalue())
    return folder / "omniglot/images_background/A/character02/3.png"


def write_miniimagenet(folder: Path) -> Path:
    """Classes c and a train, b validates, d tests; listed by turns."""
    for split, labels in (("train", "ca"), ("val", "b"), ("test", "d")):
        lines = ["filename,label"]
        for index in range(6):
            for label in labels:
                name = f"n{label}{index}.jpg"
                write(folder / "images" / name, picture(index, (84, 84), "JPEG"))
                lines.append(f"{name},{label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder / "train.csv"


def shard(samples: list[dict[str, bytes]]) -> bytes:
    """Return a tar file of samples: content by suffix."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number, sample in enumerate(samples):
            for suffix, data in sample.items():
                info = tarfile.TarInfo(f"./set/{number:04d}.{suffix}")
                # Not a whole number: tarfile then writes an extended header before it.
                info.size, info.mtime = len(data), 1.5 * number
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_shards(folder: Path, shards: int = 3) -> Path:
    """Five samples a shard, with classes as .cls and .json."""
    for split in ("train", "val"):
        for index in range(shards):
            samples = []
            for number in range(5):
                label = (index + number) % 3
                kind = (
                    {"cls": b"%d\n" % label} if number else {"json": b'{"label": %d}' % label}
                )
                samples.append({"png": picture(5 * index + number), **kind})
            write(folder / f"set-{split}-{index:04d}.tar", shard(samples))
    return folder / "set-train-0001.tar"
