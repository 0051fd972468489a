"""A BatchNorm's running variance while the bits of its layer change (Figure 2).

MetaMix (arXiv 2311.06798): "We change the activation bit-width of one layer of MobileNet-v2
every epoch of training by randomly picking the bit-width", and watch "the running variance of
batch normalization layer which follows the quantized depth-wise convolution layer". Three
cases: float weights and low-bit weights, both trained on the task loss from the float
network, and the meta-state, where bit-meta steps (Eq. 1) go on between forwards at the bits
that were drawn, as in the paper's second epoch.

Ours: bits are drawn anew every few steps (`qtool.analyses.bit_changes`), an epoch over the
same few batches, so that images cause no change; the other layers stay at their widest bits.
In every case a step moves the running variance exactly once, at the drawn bits: what
bit-meta's own forwards do to the watched BatchNorm is put back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from qtool.analyses.bit_changes import Values, schedule, variation
from qtool.analyses.meta_state import (
    FLOAT,
    META,
    MetaMixRun,
    endless,
    is_depthwise,
    open_layers,
)
from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits, Selection
from qtool.data.images import DataSet
from qtool.frontends.metamix.bit_meta import bit_meta
from qtool.nn.control import select
from qtool.nn.modules.quant_layer import Norm, QuantLayer
from qtool.nn.seeded import seeded
from qtool.runs.run import Run
from qtool.training.averages import Averages
from qtool.training.device import training_device
from qtool.training.ingredients import make_objective, plain_phase

if TYPE_CHECKING:
    from rich.table import Table


def analyse(
    runs: Sequence[Run], data: DataSet, images: int, progress: Progress
) -> dict[str, Any]:
    """Train on three copies of the network and record a BatchNorm's running variance.

    Returns:
        ``run``, ``model``, ``layer`` (the first depthwise one whose bits are searched, else
        the middle one), ``depthwise``, ``activation_bits``, ``batch_size``, ``lr``, ``hold``
        (steps that drawn bits stay), ``activations`` (the bits at every step); ``cases``:
        ``state`` (float, meta), ``weights`` (32: float), ``variance`` after every step, the
        mean over channels, and what `bit_changes.variation` says of it.

    Raises:
        UserError: not one run of frontend metamix, trained to its meta-state; no layer whose
            bits are searched has a BatchNorm behind it; training diverged.
    """
    source = MetaMixRun(runs, data, images, "norms")
    config, own = source.config, source.run.config.weight_bits
    low = own if isinstance(own, int) else min(own)
    bits = sorted(config.activation_bits, reverse=True)
    drawn, hold = schedule(bits, images // config.batch_size, config.seed)
    cases = ((FLOAT, 32), (FLOAT, low), (META, 32))
    progress.start("norms", len(cases) * (len(drawn) + hold))
    measured = []
    for state, weights in cases:
        watch = Watch(source, state, weights, low)
        with seeded(config.seed):  # of Dropout
            trace = watch.trace(drawn, hold, progress)
        rows = {"variance": trace.mean(1).tolist(), **variation(trace, drawn, hold)}
        measured.append({"state": state, "weights": weights, **rows})
    return {
        "run": str(source.run.folder), "model": config.model, "layer": watch.layer.name,
        "depthwise": is_depthwise(watch.layer), "activation_bits": bits,
        "batch_size": config.batch_size, "lr": config.meta_lr, "hold": hold,
        "activations": drawn, "cases": measured,
    }  # fmt: skip


def watched_layer(model: nn.Module, where: str) -> tuple[QuantLayer, Norm]:
    """Return the first depthwise layer with candidates, else the middle, and its norm."""
    pairs = [(layer, layer.batch_norm) for layer in open_layers(model)]
    found = [(layer, norm) for layer, norm in pairs if norm is not None]
    if not found:
        raise UserError(
            f"{where}: no layer whose bits are searched has a BatchNorm behind it, so there "
            "is no running variance to look at"
        )
    deep = [pair for pair in found if is_depthwise(pair[0])]
    return deep[0] if deep else found[len(found) // 2]


@dataclass
class Watch:
    """Trains a copy of the network and watches one BatchNorm.

    Args:
        source: the run.
        state: what training starts from; `META` also says how (see the module).
        weights: weight bits while training; 32: float.
        low: the weights' candidate.
    """

    source: MetaMixRun
    state: str
    weights: int
    low: int

    def __post_init__(self) -> None:
        config = self.source.config
        self.device = training_device(config)
        self.model = self.source.network(self.state, (self.low,)).to(self.device)
        self.layer, self.norm = watched_layer(self.model, f"run {self.source.run.folder}")
        self.widest = max(config.activation_bits)
        self.step = self._meta_step() if self.state == META else self._plain_step()

    def _plain_step(self) -> Callable[[Tensor, Tensor, int], None]:
        """Return: a step on the task loss, the watched layer at some bits."""
        config = self.source.config
        phase = plain_phase("norms", config, self.model, 1, config.meta_lr, 0.0)

        def step(x: Tensor, labels: Tensor, bits: int) -> None:
            self._select(bits)
            phase.step((x, labels), Averages())

        return step

    def _meta_step(self) -> Callable[[Tensor, Tensor, int], None]:
        """Return: a bit-meta step, then a forward of fixed weights, as bit-search does one."""
        config = self.source.config
        update, losses = bit_meta(config, config.meta_lr, self.model, make_objective(config))

        def step(x: Tensor, labels: Tensor, bits: int) -> None:
            kept = {name: value.clone() for name, value in self.norm.named_buffers()}
            update(losses, (x, labels), Averages())
            for name, value in kept.items():
                self.norm.get_buffer(name).copy_(value)
            self._select(bits)
            with torch.no_grad():
                self.model(x)

        return step

    def _select(self, bits: int) -> None:
        others = LayerBits(self.weights, self.widest)
        watched = {self.layer.name: LayerBits(self.weights, bits)}
        select(self.model, Selection(watched, others), weights=self.weights < 32)
        self.model.train()

    def trace(self, drawn: Sequence[int], hold: int, progress: Progress) -> Values:
        """Return the running variance after every step, (steps, channels).

        Before the first one come `hold` steps at the widest bits, because quantizers have
        just been fitted.
        """
        batches, rows = self.source.batches(), []
        for bits in (self.widest, *drawn[::hold]):
            for x, labels in islice(endless(batches), hold):
                self.step(x.to(self.device), labels.to(self.device), bits)
                rows.append(self.norm.get_buffer("running_var").double().cpu().numpy())
                self._require_finite(rows[-1])
                progress.step(f"weights {self.weights} bits, {self.layer.name} at {bits} bits")
        return np.stack(rows[hold:])

    def _require_finite(self, variance: Values) -> None:
        if not np.isfinite(variance).all():
            config = self.source.config
            raise UserError(
                f"run {self.source.run.folder}: training at {self.weights}-bit weights "
                f"diverged at the recipe's meta_lr={config.meta_lr:g}: train the run with a "
                "lower one"
            )


def table(content: dict[str, Any]) -> "Table":
    """Return how much the variance changes with the bits, a row per case."""
    from qtool.report.norms import variation_table

    return variation_table(content)


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw the three traces as a PNG."""
    from qtool.report.norms import traces_picture

    traces_picture(content, path)
