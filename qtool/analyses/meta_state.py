"""What analyses of the meta-state start from: a run's network before bit-meta and after it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count

from torch import nn

from qtool.analyses import only
from qtool.core.errors import UserError
from qtool.data.batches import Batch, Batches, to_batch
from qtool.data.images import DataSet
from qtool.networks import build_prepared, load_state
from qtool.nn.control import calibrate, initialise_weight_steps, quant_layers
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.metamix import MetaMixConfig
from qtool.training.ingredients import CALIBRATION_IMAGES, make_batches, settings_of

FLOAT, META = Stage.FLOAT, Stage.META


class MetaMixRun:
    """A trained MetaMix run, to make networks of; nothing in it changes.

    Args:
        runs: the one that is analysed.
        data: its images.
        images: training images of an epoch here.
        analysis: what is asked for, for the error.

    Raises:
        UserError: several runs; another frontend's; not trained to the meta-state; damaged.
    """

    def __init__(self, runs: Sequence[Run], data: DataSet, images: int, analysis: str) -> None:
        self.run = only(runs, analysis)
        if not isinstance(self.run.config, MetaMixConfig):
            raise UserError(
                f"run {self.run.folder} was made by frontend {self.run.config.frontend} and "
                f"has no meta-state: qtool analyse {analysis} takes a run of frontend metamix "
                "(qtool train metamix_... --out RUN)"
            )
        self.run.load_weights(FLOAT)
        fitted = build_prepared(self.run)
        load_state(fitted, self.run, META)
        self._meta = {
            k: v for k, v in fitted.state_dict().items() if ".weight_quant." not in k
        }
        config = settings_of(self.run, MetaMixConfig)
        self.config = replace(config, batch_size=min(config.batch_size, images), accumulate=1)
        self.data = data

    def batches(self) -> Batches:
        """Return the recipe's training batches, augmented as in training."""
        return make_batches(self.config, self.data)

    def network(self, state: str, weight_bits: Sequence[int]) -> nn.Module:
        """Return a new prepared network whose quantizers are fitted.

        Args:
            state: `FLOAT`: trained float weights, quantizers calibrated as before bit-meta.
                `META`: weights and activation steps of the meta-state.
            weight_bits: candidates of every inner layer's weight.
        """
        config = replace(self.run.config, weight_bits=tuple(weight_bits))
        like = replace(self.run, config=config)
        model = build_prepared(like, float_weights=state == FLOAT)
        if state == META:
            model.load_state_dict({**model.state_dict(), **self._meta})
            initialise_weight_steps(model)
        else:
            source = self.batches().source
            calibrate(model, to_batch(source, slice(0, CALIBRATION_IMAGES))[0])
        return model


def endless(batches: Batches) -> Iterator[Batch]:
    """Yield the batches of one epoch after the other."""
    for epoch in count():
        yield from batches.epoch(epoch)


def open_layers(model: nn.Module) -> list[QuantLayer]:
    """Return the layers whose input has several candidate bit-widths, in module order."""
    return [layer for layer in quant_layers(model) if len(layer.input_quant.bits) > 1]


def is_depthwise(layer: QuantLayer) -> bool:
    """True for a convolution of one input channel a group."""
    inner = layer.layer
    return isinstance(inner, nn.Conv2d) and inner.groups == inner.in_channels > 1
