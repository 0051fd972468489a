"""Omniglot (Lake et al. 2015): 1,623 characters of 50 alphabets, each drawn by 20 people.

``images_background`` (964 characters, for training) and ``images_evaluation`` (659 that no
training may see) hold ``<alphabet>/<character>/*.png``, 105x105, black ink. Images become
28x28 with white ink (Vinyals et al. 2016).

As a data set for ordinary training: the background's characters as classes, the last quarter
of each one's drawings (5 of 20) as test images. `omniglot_split` gives either half of the
characters whole, for methods that learn from a few drawings of new ones. Source:
https://github.com/brendenlake/omniglot.
"""

from pathlib import Path

import numpy as np

from qtool.core.errors import UserError, unknown_name
from qtool.data.decode import Drawing
from qtool.data.folders import data_folder, nested_folder
from qtool.data.image_files import FileImages, held_out, list_classes, subfolders
from qtool.data.images import DataSet

SPLITS = {"background": "images_background", "evaluation": "images_evaluation"}
_TEST_SHARE = 4
# What Vinyals et al. (2016) test on: all characters of these alphabets of the evaluation set,
# and the last four of Gurmukhi, 423 in all; the other 1,200 are trained on. Source of the
# list: Snell et al. (2017), https://github.com/jakesnell/prototypical-networks.
_TEST_ALPHABETS = (
    "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian",
    "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti", "Syriac_(Serto)", "Tengwar",
    "Tibetan", "ULOG",
)  # fmt: skip
_TEST_CHARACTERS = tuple(f"Gurmukhi/character{number}" for number in range(42, 46))


def load_omniglot(folder: Path | None, image_size: int = 0) -> DataSet:
    """Return the background's characters, 3/4 of the drawings for training.

    Args:
        folder: of images_background, or its parent; None: ``$QTOOL_DATA``.
        image_size: side of the images in pixels; 0: 28.

    Raises:
        UserError: a folder is missing or empty.
    """
    images = omniglot_split(data_folder("omniglot", folder), "background", image_size)
    test = held_out(images.labels, _TEST_SHARE)
    classes = int(images.labels.max()) + 1
    train = images.select(np.flatnonzero(~test))
    held = images.select(np.flatnonzero(test))
    return DataSet("omniglot", train, held, classes)


def omniglot_split(root: Path, split: str, image_size: int = 0) -> FileImages:
    """Return all drawings of "background" or "evaluation", classes numbered from 0.

    Raises:
        UserError: unknown `split`, or a folder that is missing or empty.
    """
    if split not in SPLITS:
        raise unknown_name("split of omniglot", split, SPLITS)
    place = str(nested_folder(root, "omniglot") / SPLITS[split])
    return _listed(place, _characters(place), image_size)


def vinyals_split(root: Path, image_size: int = 0) -> tuple[FileImages, FileImages]:
    """Return the drawings of the 1,200 characters to train on, and of the 423 to test.

    Raises:
        UserError: a folder is missing or empty, or has no character to test.
    """
    place = nested_folder(root, "omniglot")
    names = [
        f"{folder}/{name}"
        for folder in SPLITS.values()
        for name in _characters(str(place / folder))
    ]
    test = [name for name in names if _is_tested(name)]
    train = [name for name in names if not _is_tested(name)]
    if not test:
        raise UserError(
            f"data set omniglot: {place / SPLITS['evaluation']} has none of the alphabets "
            f"{', '.join(_TEST_ALPHABETS)}, which Vinyals' split tests"
        )
    halves = [_listed(str(place), half, image_size) for half in (train, test)]
    return halves[0], halves[1]


def _is_tested(name: str) -> bool:
    folder, alphabet, character = name.split("/")
    known = alphabet in _TEST_ALPHABETS or f"{alphabet}/{character}" in _TEST_CHARACTERS
    return folder == SPLITS["evaluation"] and known


def _characters(place: str) -> list[str]:
    return [
        f"{alphabet}/{character}"
        for alphabet in subfolders(place)
        for character in subfolders(f"{place}/{alphabet}")
    ]


def _listed(place: str, names: list[str], image_size: int) -> FileImages:
    classes = {name: number for number, name in enumerate(names)}
    return list_classes(place, classes, Drawing(image_size or 28))
