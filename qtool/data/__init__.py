"""Data sets by name."""

from importlib import import_module
from pathlib import Path

from qtool.data.images import DataSet
from qtool.errors import unknown_name

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
}


def load_dataset(name: str, folder: Path | None = None) -> DataSet:
    """Load data set `name`; `folder` overrides where its files are looked for."""
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    module, function, _ = DATASETS[name]
    loaded: DataSet = getattr(import_module(module), function)(folder)
    return loaded
