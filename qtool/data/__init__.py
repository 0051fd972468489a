"""Data sets by name."""

from importlib import import_module
from pathlib import Path

from qtool.core.errors import unknown_name
from qtool.data.images import DataSet

# name: (module, function, what `qtool list` says)
DATASETS = {
    "fashion_mnist_12k": (
        "qtool.data.fashion_mnist",
        "load_embedded",
        "Fashion-MNIST subset inside the package: 12,000 + 2,000 images, 1x28x28",
    ),
    "fashion_mnist": (
        "qtool.data.fashion_mnist",
        "load_full",
        "Fashion-MNIST, published files in --data or $QTOOL_DATA: 60,000 + 10,000 images",
    ),
    "cifar10": (
        "qtool.data.cifar10",
        "load_cifar10",
        "CIFAR-10, published binary files in --data or $QTOOL_DATA: 50,000 + 10,000 images",
    ),
    "svhn": (
        "qtool.data.svhn",
        "load_svhn",
        "SVHN, published .mat files in --data or $QTOOL_DATA: 73,257 + 26,032 images",
    ),
    "svhn_extra": (
        "qtool.data.svhn",
        "load_svhn_extra",
        "SVHN with its 531,131 extra training images",
    ),
    "omniglot": (
        "qtool.data.omniglot",
        "load_omniglot",
        "Omniglot's background set, published folders in --data: 964 characters",
    ),
    "miniimagenet": (
        "qtool.data.miniimagenet",
        "load_miniimagenet",
        "MiniImageNet's training classes, images/ and csv files in --data: 64 classes",
    ),
    "omniglot_fewshot": (
        "qtool.data.fewshot",
        "load_omniglot_fewshot",
        "Omniglot for few-shot methods: 3,856 classes to train on, 2,636 others to test",
    ),
    "omniglot_vinyals": (
        "qtool.data.fewshot",
        "load_omniglot_vinyals",
        "Omniglot in Vinyals' split: 4,800 classes to train on, 1,692 others to test",
    ),
    "miniimagenet_fewshot": (
        "qtool.data.fewshot",
        "load_miniimagenet_fewshot",
        "MiniImageNet for few-shot methods: 64 classes to train on, 20 others to test",
    ),
    "imagefolder_fewshot": (
        "qtool.data.fewshot",
        "load_imagefolder_fewshot",
        "train/CLASS/* and val/CLASS/* in --data, of different classes",
    ),
    "support_drawings": (
        "qtool.data.support",
        "load_drawings",
        "CLASS/* in --data: dark ink on white paper, for what learned from omniglot_fewshot",
    ),
    "support_colour": (
        "qtool.data.support",
        "load_colour",
        "CLASS/* in --data: whole pictures in colour, for few-shot networks",
    ),
    "support_grey": (
        "qtool.data.support",
        "load_grey",
        "CLASS/* in --data: whole pictures in grey, for few-shot networks",
    ),
    "imagenette": (
        "qtool.data.imagefolder",
        "load_imagenette",
        "Imagenette, published folders in --data: 10 classes of ImageNet",
    ),
    "imagefolder": (
        "qtool.data.imagefolder",
        "load_imagefolder",
        "train/CLASS/* and val/CLASS/* in --data, as of ImageNet",
    ),
    "webdataset": (
        "qtool.data.webdataset",
        "load_webdataset",
        "shards (.tar) of images and classes in --data, as of ImageNet",
    ),
    "kinetics": (
        "qtool.data.kinetics",
        "load_kinetics",
        "Kinetics or Mini-Kinetics, published csv files and cut videos in --data",
    ),
    "activitynet": (
        "qtool.data.activitynet",
        "load_activitynet",
        "ActivityNet, published json file and videos in --data",
    ),
    "video_frames": (
        "qtool.data.video_lists",
        "load_video_frames",
        "videos as folders of frames, with train and val lists in --data",
    ),
    "video_files": (
        "qtool.data.video_lists",
        "load_video_files",
        "video files, with train and val lists in --data",
    ),
}
# Data sets of which these settings of a recipe decide the images.
_SIZED = ("image_size",)
_CLIPS = ("image_size", "frames")
_SHAPED = {
    "omniglot": _SIZED,
    "miniimagenet": _SIZED,
    "omniglot_fewshot": _SIZED,
    "omniglot_vinyals": _SIZED,
    "miniimagenet_fewshot": _SIZED,
    "imagefolder_fewshot": _SIZED,
    "support_drawings": _SIZED,
    "support_colour": _SIZED,
    "support_grey": _SIZED,
    "imagenette": _SIZED,
    "imagefolder": _SIZED,
    "webdataset": _SIZED,
    "kinetics": _CLIPS,
    "activitynet": _CLIPS,
    "video_frames": _CLIPS,
    "video_files": _CLIPS,
}


def load_dataset(
    name: str, folder: Path | str | None = None, image_size: int = 0, frames: int = 0
) -> DataSet:
    """Load data set `name`.

    Args:
        name: key of `DATASETS`.
        folder: value of ``--data``: where its files are looked for, or package.module:factory,
            which then gives the data instead (`qtool.data.factory`).
        image_size: side of images that have no size of their own, in pixels; 0: the usual.
        frames: images a clip of video; 0: the usual.
    """
    if isinstance(folder, str) or ":" in name:
        from qtool.data.factory import load_factory

        return load_factory(folder, name, image_size)
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    module, function, _ = DATASETS[name]
    options = {"image_size": image_size, "frames": frames}
    options = {key: options[key] for key in _SHAPED.get(name, ())}
    loaded: DataSet = getattr(import_module(module), function)(folder, **options)
    return loaded
