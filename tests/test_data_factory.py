"""``--data package.module:factory``: data from the user's own code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_qtool
from PIL import Image

from qtool.core.errors import UserError
from qtool.data import load_dataset

SIZE = 6
CODE = """
import numpy as np, torch
from PIL import Image
from qtool.data.images import DataSet, Images

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 3, 6, 6), np.uint8)
LABELS = np.arange(8) % 4

class Mapped(torch.utils.data.Dataset):
    def __init__(self, form):
        self.form = form
    def __len__(self):
        return 8
    def __getitem__(self, row):
        return self.form(PIXELS[row]), int(LABELS[row])

def pil(x):
    return Image.fromarray(x.transpose(1, 2, 0))

def twice(value):
    return value, value

def data_set():
    images = Images(PIXELS, LABELS)
    return DataSet("mine", images, images, 4)
def arrays():
    return twice((PIXELS, LABELS))
def tensors():
    return twice((torch.from_numpy(PIXELS), torch.from_numpy(LABELS)))
def last():
    return [*twice((PIXELS.transpose(0, 2, 3, 1), LABELS)), 4]
def images():
    return twice(Images(PIXELS, LABELS))
def pictures():
    return twice(Mapped(pil))
def floats():
    return twice(Mapped(lambda x: torch.from_numpy(x) / 255))
def sized(image_size=3):
    return twice((PIXELS[..., :image_size], LABELS))
def gray():
    return twice((PIXELS[:, 0], LABELS)) + (10,)
def fashion():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 28, 28), np.uint8)
    return twice((pixels, np.arange(64) % 10))

def nothing():
    return None
def three():
    return 1, 2, 3, 4
def wide():
    return twice((PIXELS.astype(float), LABELS))
def fewer():
    return twice((PIXELS, LABELS[:3]))
def names():
    return twice((PIXELS, list("abcdefgh")))
def negative():
    return twice((PIXELS, np.array([0, 1, -1, 2, 3, -1, 0, 1])))
def negative_source():
    return twice(Images(PIXELS, LABELS - 1))
def empty():
    return twice((PIXELS[:0], LABELS[:0]))
def empty_lists():
    return twice(([], []))
def empty_source():
    images = Images(PIXELS[:0], LABELS[:0])
    return DataSet("mine", Images(PIXELS, LABELS), images, 4)
def empty_mapped():
    class Empty(Mapped):
        def __len__(self):
            return 0
    return twice(Empty(pil))
def unlabelled():
    class Unlabelled(Mapped):
        def __getitem__(self, row):
            return pil(PIXELS[row])
    return twice(Unlabelled(pil))
def normalised():
    return twice(Mapped(lambda x: torch.from_numpy(x) / 100 - 1))
def classes():
    return *twice((PIXELS, LABELS)), 3
def differing():
    return (PIXELS, LABELS), (PIXELS[..., :3], LABELS)
def failing():
    raise KeyError("x")
value = 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    (tmp_path / "my_images.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_images", raising=False)
    scope: dict = {}
    exec(CODE, scope)
    return scope


@pytest.mark.parametrize(
    "factory", ["data_set", "arrays", "tensors", "last", "images", "pictures", "floats"]
)
def test_every_form_gives_the_same_images(code: dict, factory: str) -> None:
    data = load_dataset("cifar10", f"my_images:{factory}")
    assert data.name == f"my_images:{factory}" and data.classes == 4
    for source in (data.train, data.test.head(None)):
        assert source.shape == (3, SIZE, SIZE) and source.labels.tolist() == [0, 1, 2, 3] * 2
        assert np.array_equal(source.load(np.array([5, 2])), code["PIXELS"][[5, 2]])
        assert len(source.head(3)) == 3
        assert np.array_equal(source.head(3).load(slice(0, 9)), code["PIXELS"][:3])


def test_one_channel_and_a_size_that_the_recipe_sets(code: dict) -> None:
    data = load_dataset("x", "my_images:gray")
    assert data.shape == (1, SIZE, SIZE) and data.classes == 10
    assert load_dataset("x", "my_images:sized").shape == (3, SIZE, 3)
    assert load_dataset("x", "my_images:sized", 5).shape == (3, SIZE, 5)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nothing", "returned a NoneType, expected a DataSet, .train, test. or"),
        ("three", "returned a tuple of 4"),
        ("wide", "train: 8 images are float64, with 8 labels; expected uint8"),
        ("fewer", "8 images are uint8, with 3 labels"),
        ("names", "labels are <U1 .8,., expected class numbers"),
        ("negative", "train: the label of image 2 is -1, expected class numbers from 0"),
        ("negative_source", "train: the label of image 0 is -1, expected class numbers"),
        ("empty", "train: there are no images"),
        ("empty_lists", "train: there are no images"),
        ("empty_source", "test: there are no images"),
        ("empty_mapped", "train: there are no images"),
        ("unlabelled", "train: item 0 is a Image, expected .image, label."),
        ("normalised", "image values from -?[0-9.]+ to [0-9.]+, expected .0, 1.: normalise"),
        ("classes", "got 3 classes, labels need 4"),
        ("differing", r"training images are \(3, 6, 6\), test \(3, 6, 3\)"),
        ("failing", "data factory my_images:failing failed: KeyError: 'x'"),
        ("value", "is a int, expected a function"),
        ("imges", "module my_images has no 'imges': did you mean images"),
        ("", "data factory my_images:: expected package.module:factory"),
    ],
)
def test_wrong_factories_are_one_line(code: dict, factory: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("cifar10", f"my_images:{factory}")
    assert "\n" not in str(caught.value)


def test_items_of_other_sizes_are_named(code: dict) -> None:
    data = load_dataset("x", "my_images:pictures")
    shapes = iter([(4, 4), (5, 5)])
    data.train.items.form = lambda x: Image.new("RGB", next(shapes))
    with pytest.raises(UserError, match=r"image 0 is \(3, 4, 4\), the first one \(3, 6, 6\)"):
        data.train.load(slice(0, 2))
    assert torch.is_tensor(load_dataset("x", "my_images:floats").train.items[0][0])


def test_a_run_remembers_its_factory_and_runs_it_only_when_asked(
    code: dict, tmp_path: Path
) -> None:
    run, given = tmp_path / "run", ("--data", "my_images:fashion")
    none = [f"--set={phase}_epochs=0" for phase in ("float", "meta")]
    few = ("--set", "batch_size=16", "--set", "norm_batches=1", "--set", "workers=1")
    trained = run_qtool("train", "metamix_fashion", *none, *few, *given, "--out", run)
    assert trained.code == 0, trained.err
    for more, words in (((), "give --data my_images:fashion"), (given, "budget")):
        refused = run_qtool("search", run, "--bops", "1", *more)
        assert refused.code == 2 and words in refused.err
