"""MD5 sums that publishers give for their files, and the sizes of those.

A file of the published size must have the published sum. Files of other sizes are somebody's
own selection in the same format, and are only checked for being whole.

Sources: torchvision's ``datasets/cifar.py`` and ``svhn.py``; Fashion-MNIST's README.
"""

import hashlib
from pathlib import Path

from qtool.core.errors import UserError

# (name, size in bytes): MD5
PUBLISHED = {
    ("data_batch_1", 31035704): "c99cafc152244af753f735de768cd75f",
    ("data_batch_2", 31035320): "d4bba439e000b95fd0a9bffe97cbabec",
    ("data_batch_3", 31035999): "54ebc095f3ab1f0389bbae665268c751",
    ("data_batch_4", 31035696): "634d18415352ddfa80567beed471001a",
    ("data_batch_5", 31035623): "482c414d41f54cd18b22e5b47cb7c3cb",
    ("test_batch", 31035526): "40351d587109b95175f43aff81a1287e",
    ("train_32x32.mat", 182040794): "e26dedcc434d2e4c54c9b2d4a06d8373",
    ("test_32x32.mat", 64275384): "eb5a983be6a315427106f1b164d9cef3",
    ("extra_32x32.mat", 1329278602): "a93ce644f1a588dc4d68dda5feec44a7",
    ("train-images-idx3-ubyte.gz", 26421880): "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    ("train-labels-idx1-ubyte.gz", 29515): "25c81989df183df01b3e8a0aad5dffbe",
    ("t10k-images-idx3-ubyte.gz", 4422102): "bef4ecab320f06d8554ea6380940ec79",
    ("t10k-labels-idx1-ubyte.gz", 5148): "bb300cfdad3c16e7a12a480ee83cd310",
}


def require_published(path: Path) -> None:
    """Refuse a file that has the published size, but not the published content.

    Raises:
        UserError: it is damaged, missing or not readable.
    """
    try:
        wanted = PUBLISHED.get((path.name, path.stat().st_size))
        if wanted is None:
            return
        with open(path, "rb") as file:
            got = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    except OSError as error:
        raise UserError(f"data file {path} is not readable: {error.strerror}") from None
    if got.hexdigest() != wanted:
        raise UserError(
            f"data file {path} is damaged: MD5 {got.hexdigest()}, published is {wanted}; "
            "fetch it again"
        )
