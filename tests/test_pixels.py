"""Pixels of every type: converted as a stated rule says, or refused by name."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qtool.core.errors import UserError
from qtool.data import load_dataset
from qtool.data.decode import Drawing, Photograph, open_image
from qtool.data.items import item_pixels
from qtool.data.pixels import narrow, to_mode

SIDE = 8
RAMP = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
COLOURS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE), np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **more)
    return buffer.getvalue()


def decoded(data: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(open_image(data, "a.png", mode)).astype(int)


def rgb(array: np.ndarray = COLOURS) -> Image.Image:
    return Image.fromarray(array)


def test_sixteen_bits_are_scaled() -> None:
    expected = np.rint(RAMP / 257).astype(int)
    image = Image.fromarray(RAMP)
    assert image.mode == "I;16"
    for form in ("PNG", "TIFF", "PPM"):  # Pillow opens the last one as 32-bit integers
        data = encoded(image, form)
        assert np.array_equal(decoded(data, "L"), expected), form
        assert np.array_equal(decoded(data), np.stack([expected] * 3, -1)), form
    big = Image.frombytes("I;16B", (SIDE, SIDE), RAMP.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(to_mode(big, "x", "L")), expected)
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(narrow(every), np.rint(every / 257))


def test_sixteen_bits_of_colour_keep_the_high_byte() -> None:
    wide = COLOURS.astype(">u2") * 257
    data = b"P6 8 8 65535\n" + wide.tobytes()
    assert np.abs(decoded(data) - COLOURS).max() <= 1


# Of each: the image that is stored, how, and the RGB pixels that it means.
def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def keyed() -> tuple[bytes, np.ndarray]:
    """A palette, of which entry 1 is transparent."""
    image = Image.fromarray((np.arange(64).reshape(8, 8) % 3).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 99, 255])
    palette = np.array([[10, 20, 30], [255, 255, 255], [0, 99, 255]])
    return encoded(image, transparency=1), palette[np.arange(64).reshape(8, 8) % 3]


def coloured_key() -> tuple[bytes, np.ndarray]:
    """Eight-bit RGB, of which one colour is transparent."""
    colours = COLOURS.copy()
    colours[:4] = (1, 2, 3)
    expected = colours.copy()
    expected[:4] = 255
    return encoded(rgb(colours), transparency=(1, 2, 3)), expected


def grey_alpha() -> tuple[bytes, np.ndarray]:
    stacked = np.stack([COLOURS[..., 0], ALPHA], -1)
    grey = np.repeat(COLOURS[..., :1], 3, -1)
    return encoded(Image.fromarray(stacked)), over_white(grey, ALPHA)


def cmyk() -> tuple[bytes, np.ndarray]:
    inks = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 4), np.uint8)
    image = Image.fromarray(inks, "CMYK")
    paper = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    return encoded(image, "TIFF"), paper


def palette() -> tuple[bytes, np.ndarray]:
    image = rgb().quantize(16)
    return encoded(image), np.asarray(image.convert("RGB"))


def bilevel() -> tuple[bytes, np.ndarray]:
    bits = ALPHA > 99
    return encoded(Image.fromarray(bits)), np.repeat(bits[..., None] * 255, 3, -1)


KINDS: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
    "RGB": lambda: (encoded(rgb()), COLOURS),
    "L": lambda: (encoded(Image.fromarray(ALPHA)), np.repeat(ALPHA[..., None], 3, -1)),
    "1": bilevel,
    "P": palette,
    "P, a transparent entry": keyed,
    "RGB, a transparent colour": coloured_key,
    "LA": grey_alpha,
    "RGBA": lambda: (
        encoded(Image.fromarray(np.dstack([COLOURS, ALPHA]))), over_white(COLOURS, ALPHA),
    ),
    "CMYK": cmyk,
    "YCbCr": lambda: (encoded(rgb().convert("YCbCr"), "TIFF"), COLOURS),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_pixels(kind: str) -> None:
    data, expected = KINDS[kind]()
    slack = 3 if kind == "YCbCr" else 1
    assert np.abs(decoded(data) - expected).max() <= slack
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(decoded(data, "L") - expected @ weights).max() <= slack + 1


@pytest.mark.parametrize("kind", ["I", "F", "LAB"])
def test_pixels_of_no_known_range_are_refused(kind: str, tmp_path: Path) -> None:
    data = encoded(Image.new(kind, (SIDE, SIDE)), "TIFF")
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        (tmp_path / part / "a" / "0.tif").write_bytes(data)
    source = load_dataset("imagefolder", tmp_path, 8).train
    with pytest.raises(UserError, match=rf"a/0.tif has pixels of .* mode {kind} \(") as caught:
        source.load(slice(0, 1))
    assert "convert it to 8-bit" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    shown = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    # What is stored so that the viewer's turn gives `shown`.
    stored = {
        1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.T,
        6: np.rot90(shown), 7: shown[::-1, ::-1].T, 8: np.rot90(shown, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(decoded(data, "L"), shown)


def test_damaged_metadata_is_passed_over() -> None:
    data = encoded(rgb(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(decoded(data), COLOURS)


def test_decoders_and_shards_convert(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RAMP))
    expected = np.rint(RAMP / 257)
    assert np.array_equal(Photograph(SIDE, whole=True)(data, "a", None)[0], expected)
    clear = encoded(Image.fromarray(np.dstack([COLOURS, 0 * ALPHA])))
    assert not Drawing(SIDE)(clear, "a", None).any()  # white paper, so no ink
    for part in ("train", "val"):
        with tarfile.open(tmp_path / f"{part}-0.tar", "w") as tar:
            for name, content in (("0.png", data), ("0.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    source = load_dataset("webdataset", tmp_path, SIDE).train
    assert source.load(slice(0, 1)).std() > 60


def test_images_of_code() -> None:
    grey = np.rint(RAMP / 257)
    for image, expected in (
        (rgb().quantize(16), np.asarray(rgb().quantize(16).convert("RGB")).transpose(2, 0, 1)),
        (Image.fromarray(RAMP), grey[None]),
        (Image.fromarray(ALPHA > 99), ((ALPHA > 99) * 255)[None]),
        (Image.fromarray(ALPHA), ALPHA[None]),
        (rgb().convert("YCbCr"), np.asarray(rgb().convert("YCbCr").convert("RGB"))
         .transpose(2, 0, 1)),
        (COLOURS, COLOURS.transpose(2, 0, 1)),
        (COLOURS / np.float32(255), COLOURS.transpose(2, 0, 1)),
    ):  # fmt: skip
        assert np.array_equal(item_pixels("x", (image, 0)), expected)


REFUSED = {
    "uint16": (RAMP, "a ndarray of uint16, expected uint8, or floats"),
    "int64": (COLOURS.astype(np.int64), "of int64, expected uint8"),
    "bool": (ALPHA > 99, "of bool, expected uint8"),
    "to 255": (COLOURS.astype(np.float32), "image values from 0 to [0-9]+, expected .0, 1."),
    "NaN": (np.full((3, 8, 8), np.nan), "image values from nan to nan"),
    "four channels last": (np.dstack([COLOURS, ALPHA]), "4 channels last; expected 1 or 3"),
    "float image": (Image.new("F", (8, 8)), "image of x has pixels of Pillow's mode F"),
    "five axes": (np.zeros((1, 1, 3, 8, 8), np.uint8), "images have shape"),
    "text": ("a.png", "a str of <U5, expected uint8"),
    "ragged": ([[1, 2], [3]], "is no array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_values_of_code_are_refused(case: str) -> None:
    image, text = REFUSED[case]
    with pytest.raises(UserError, match=text) as caught:
        item_pixels("x", (image, 0))
    assert "\n" not in str(caught.value)


CODE = """
import numpy as np
from qtool.data.images import DataSet, Images

class Floats:
    labels, shape, frames, draws = np.arange(4) % 2, (1, 6, 6), 1, 0
    def __len__(self): return 4
    def load(self, rows, draws=None):
        return np.zeros((len(self.labels[rows]), *self.shape), np.float32)
class Broken(Floats):
    def load(self, rows, draws=None): raise KeyError("pixels")
class Items:
    def __len__(self): return 4
    def __getitem__(self, row): raise OSError("disk is gone")

IMAGES = Images(np.zeros((4, 1, 6, 6), np.uint8), np.arange(4))
def floats(): return Floats(), Floats()
def broken(): return Broken(), Broken()
def items(): return Items(), Items()
def few(): return DataSet("x", IMAGES, IMAGES, 3)
def alpha(): return ((np.zeros((4, 8, 8, 4), np.uint8), np.arange(4)),) * 2
"""
FACTORIES = {
    "floats": r"train: load\(\) gives float32 \(1, 1, 6, 6\), expected uint8 \(1, 1, 6, 6\)",
    "broken": "train: its first image failed: KeyError: 'pixels'",
    "items": "train: item 0 failed: OSError: disk is gone",
    "few": "train: got 3 classes, labels need 4",
    "alpha": "4 channels last; expected 1 or 3",
}


@pytest.mark.parametrize("name", FACTORIES)
def test_sources_of_code_are_looked_at_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_images.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "odd_images", raising=False)
    with pytest.raises(UserError, match=FACTORIES[name]) as caught:
        load_dataset("x", f"odd_images:{name}")
    assert "\n" not in str(caught.value)


def test_a_folder_of_wide_images_trains_on_their_range(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(RAMP).save(tmp_path / part / "a" / "0.png")
    pixels = load_dataset("imagefolder", tmp_path, SIDE).train.load(slice(0, 1))
    assert abs(pixels.mean() - 127.5) < 1
