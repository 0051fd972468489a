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

from qtool.core.errors import unknown_name
from qtool.data.decode import Drawing
from qtool.data.folders import data_folder, nested_folder
from qtool.data.image_files import FileImages, held_out, list_classes, subfolders
from qtool.data.images import DataSet

SPLITS = {"background": "images_background", "evaluation": "images_evaluation"}
_TEST_SHARE = 4


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
    names = [
        f"{alphabet}/{character}"
        for alphabet in subfolders(place)
        for character in subfolders(f"{place}/{alphabet}")
    ]
    classes = {name: number for number, name in enumerate(names)}
    return list_classes(place, classes, Drawing(image_size or 28))
