"""Few-shot networks with their classes: runs that ``qtool adapt`` makes, at one pair of bits.

A run of an embedding (MEBQAT-PN) has a linear layer of prototypes behind it, one of a
classifier (MEBQAT-MAML) the fine-tuned weights. Both are ordinary runs to export and check;
``classes.json`` has the names of their classes, in the order of the logits.
"""

from typing import NoReturn

from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.data.images import DataSet
from qtool.runs.run import Run
from qtool.settings.adapted import AdaptedConfig
from qtool.settings.base import Config
from qtool.training.frontend import Frontend


def check(config: Config, data: DataSet) -> NoReturn:
    """Refuse: nothing is trained here."""
    raise UserError(
        f"recipe {config.name}: runs of frontend adapted are made by qtool adapt RUN "
        "--support DIR --bits w4a4 -o ADAPTED"
    )


def train(run: Run, data: DataSet, progress: Progress, resume: bool) -> NoReturn:
    """Refuse: nothing is trained here."""
    check(run.config, data)


def search_start(run: Run) -> NoReturn:
    """Refuse: no bits are searched here."""
    raise UserError(
        f"run {run.folder} was adapted to one pair of bits: adapt "
        f"{run.settings(AdaptedConfig).source} to another with qtool adapt"
    )


FRONTEND = Frontend(
    AdaptedConfig, check, train, search_start, "qtool export {run} --target onnx -o model.onnx"
)
