"""Data from the user's own code: ``--data package.module:factory``.

The factory is called without arguments, or with ``image_size`` where its signature names it
and the recipe sets it. It returns a `DataSet`, or (train, test) or (train, test, classes),
each of

    a `Source`
    (pixels, labels)    arrays or tensors: uint8 (N, H, W), (N, C, H, W) or (N, H, W, C)
    a data set of torch or torchvision, len() and [i]: (image, label); an image is Pillow's, a
    uint8 array (C, H, W), (H, W, C) or (H, W), or floats in [0, 1] (`qtool.data.items`)
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError
from qtool.core.importing import current_folder, import_callable, reason
from qtool.data.images import DataSet, Images, Rows, Source
from qtool.data.items import item_pixels, kind_of, layout, to_array


def load_factory(name: str | Any, dataset: str, image_size: int = 0) -> DataSet:
    """Return the data that factory `name` makes.

    Args:
        name: ``package.module:factory``, as given with ``--data``.
        dataset: the recipe's data set, or that of the run or file.
        image_size: side of the images in pixels; 0: the factory decides.

    Raises:
        UserError: no such factory, it fails, or returns something else.
    """
    if not isinstance(name, str):
        # Files and runs name where their data came from; only the user may have code run.
        raise UserError(f"data come from {dataset}: to run that code, give --data {dataset}")
    what = f"data factory {name}"
    made = _called(what, import_callable(what, name), image_size)
    if isinstance(made, DataSet):
        return replace(_checked(what, made), name=name)
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        raise UserError(
            f"{what}: returned {kind_of(made)}, expected a DataSet, (train, test) or "
            "(train, test, classes)"
        )
    train, test = _source(f"{what}, train", made[0]), _source(f"{what}, test", made[1])
    if train.shape != test.shape:
        raise UserError(f"{what}: training images are {train.shape}, test {test.shape}")
    most = int(max(train.labels.max(), test.labels.max())) + 1
    classes = made[2] if len(made) == 3 else most
    if type(classes) is not int or classes < most:
        raise UserError(f"{what}: got {classes!r} classes, labels need {most}")
    return DataSet(name, train, test, classes)


def _called(what: str, factory: Callable[..., Any], image_size: int) -> Any:
    if not callable(factory):
        raise UserError(f"{what}: is a {type(factory).__name__}, expected a function")
    try:
        named = "image_size" in inspect.signature(factory).parameters
        with current_folder():
            return factory(image_size=image_size) if named and image_size else factory()
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{what} failed: {reason(error)}") from error


def _source(what: str, value: Any) -> Source:
    if isinstance(value, tuple | list) and len(value) == 2:
        labels, pixels = _labels(what, value[1]), layout(what, to_array(what, value[0]), 4)
        if pixels.dtype != np.uint8 or len(pixels) != len(labels):
            raise UserError(
                f"{what}: {len(pixels)} images are {pixels.dtype}, with {len(labels)} labels; "
                "expected uint8 and one label each"
            )
        return Images(pixels, labels)
    if hasattr(value, "load") and hasattr(value, "labels") and hasattr(value, "shape"):
        source: Source = value
        _labels(what, source.labels)
        _check_source(what, source)
        return source
    if hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        labels = _labels(what, _all_labels(what, value))
        return MappedImages(
            value, labels, item_pixels(what, _item(what, value, 0)).shape, what
        )
    raise UserError(
        f"{what}: got {kind_of(value)}, expected (pixels, labels), a Source, or a data set "
        "with len() and [i]"
    )


def _checked(what: str, data: DataSet) -> DataSet:
    """Return `data`, whose sources are the user's own code."""
    for part, source in (("train", data.train), ("test", data.test)):
        _labels(f"{what}, {part}", source.labels)
        _check_source(f"{what}, {part}", source)
        most = int(np.max(source.labels, initial=0)) + 1
        if data.classes < most:
            raise UserError(f"{what}, {part}: got {data.classes} classes, labels need {most}")
    return data


def _check_source(what: str, source: Source) -> None:
    """Refuse a source that gives other pixels than it says, or none."""
    try:
        pixels = np.asarray(source.load(slice(0, 1)))
        expected = (getattr(source, "frames", 1), *source.shape)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{what}: its first image failed: {reason(error)}") from error
    if pixels.dtype != np.uint8 or pixels.shape != expected:
        raise UserError(
            f"{what}: load() gives {pixels.dtype} {pixels.shape}, expected uint8 {expected}"
        )


def _item(what: str, items: Any, row: int) -> Any:
    try:
        return items[row]
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{what}: item {row} failed: {reason(error)}") from error


def _all_labels(what: str, value: Any) -> Any:
    """Return the labels of a map-style data set; torchvision's keep them aside."""
    for key in ("targets", "labels", "_labels"):
        known = getattr(value, key, None)
        if known is not None and np.ndim(known) == 1 and len(known) == len(value):
            return known
    labels = []
    for row in range(len(value)):
        item = _item(what, value, row)
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise UserError(f"{what}: item {row} is {kind_of(item)}, expected (image, label)")
        labels.append(item[1])
    return labels


def _labels(what: str, value: Any) -> NDArray[np.int64]:
    labels = np.asarray(value)
    if labels.shape[:1] == (0,):
        raise UserError(f"{what}: there are no images; expected at least one")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{what}: labels are {labels.dtype} {labels.shape}, expected class numbers (N,) "
            "from 0"
        )
    if labels.min() < 0:
        row = int(np.argmax(labels < 0))
        raise UserError(
            f"{what}: the label of image {row} is {labels[row]}, expected class numbers from 0"
        )
    return labels.astype(np.int64)


@dataclass(frozen=True)
class MappedImages:
    """A map-style data set as a source; `what` names it in messages."""

    items: Any
    labels: NDArray[np.int64]
    shape: tuple[int, ...]
    what: str
    frames: int = 1
    draws: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int | None) -> "MappedImages":
        """Return the first `count` images (all for None)."""
        return replace(self, labels=self.labels[:count])

    def load(self, rows: Rows, draws: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
        """Return the pixels (n, C, H, W) of `rows`; what the data set draws is its own."""
        wanted = np.arange(len(self))[rows]
        pixels = np.empty((len(wanted), *self.shape), np.uint8)
        for place, row in enumerate(wanted.tolist()):
            image = item_pixels(self.what, _item(self.what, self.items, row))
            if image.shape != self.shape:
                raise UserError(
                    f"{self.what}: image {row} is {image.shape}, the first one {self.shape}"
                )
            pixels[place] = image
        return pixels
