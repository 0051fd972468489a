"""What every frontend shares: the float network, its loss, optimizer and pre-training."""

from torch import nn

from qtool.core.progress import Progress
from qtool.data.images import DataSet
from qtool.networks import build_float, network_with
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import TrainConfig
from qtool.settings.coquant import CoquantConfig
from qtool.settings.mebqat import MebqatConfig
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.qat import QatConfig
from qtool.training.evaluation import accuracy, recalibrate_norms
from qtool.training.ingredients import make_batches, plain_phase, with_teacher
from qtool.training.phases import run_phase


def train_float(
    run: Run,
    config: TrainConfig,
    epochs: int,
    lr: float,
    data: DataSet,
    progress: Progress,
    resume: bool,
) -> None:
    """Train the float network for `epochs` at `lr`; leaves ``float.safetensors``."""
    batches = make_batches(config, data)
    model = build_float(run)
    phase = plain_phase("float", config, model, epochs, lr)
    run_phase(phase, run, batches, progress, resume)
    recalibrate_norms(model, batches, config.norm_batches)
    save_float(run, model, data, progress)
    run.drop_checkpoint()


def make_float(
    run: Run,
    config: QatConfig | MetaMixConfig | MebqatConfig | CoquantConfig,
    data: DataSet,
    progress: Progress,
    resume: bool,
) -> None:
    """Take the recipe's float weights, or train some; leaves ``float.safetensors``."""
    if config.weights:
        model = network_with(config, config.weights, data.shape, data.classes)
        save_float(run, model, data, progress)
    else:
        config = with_teacher(config, "")
        train_float(run, config, config.float_epochs, config.float_lr, data, progress, resume)


def save_float(run: Run, model: nn.Module, data: DataSet, progress: Progress) -> None:
    """Measure the float network and save it as ``float.safetensors``."""
    result = accuracy(model, data.test)
    run.add_metrics(phase="float", test_accuracy=result)
    run.save_weights(Stage.FLOAT, model.state_dict())
    progress.note(f"float: test accuracy {result:.2f} %")
