"""Accuracy and cost of a run at one pair of bit-widths.

Pairs of up to 8 bits are measured as they are deployed: exported, written as the runtime's
file, executed by it. Others, and what has no integer form, are measured in torch, in the
network with its quantizers; so is everything where torch is asked for.
"""

import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import nn

from passes.emit.registry import TARGETS
from qtool.checking.accuracy import top1
from qtool.checking.collect import outputs_of
from qtool.checking.grid_record import TORCH, PairRecord
from qtool.checking.models import open_models
from qtool.core.cost import LayerCost, total_bops
from qtool.core.errors import UnsupportedError
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.pairs import deployable
from qtool.core.progress import Silent
from qtool.core.selection import LayerBits, Selection
from qtool.data.images import DataSet
from qtool.export.adaptive import RunSource
from qtool.export.export import integer_model_at
from qtool.networks import load_adaptive
from qtool.nn.control import layer_macs, select_pair, selected_bits
from qtool.runs.run import Run
from qtool.training.evaluation import accuracy
from qtool.training.transductive import transductive_accuracy
from runtimes.registry import runtime_entry

_FLOATS = "16 and 32 bits are floating point, which no integer runtime computes"


@dataclass
class Meter:
    """Measures `run` on the test images of `data`, deployed in `runtime` or in `TORCH`.

    `episodes` is not 0 where it is measured on so many of them (`EpisodeMeter`), of a `task`
    such as 20-way 5-shot.
    """

    run: Run
    data: DataSet
    runtime: str
    episodes: int = 0
    task: str = ""

    @cached_property
    def model(self) -> nn.Module:
        """The run's network with its quantizers."""
        return load_adaptive(self.run)

    @cached_property
    def _macs(self) -> list[tuple[str, int]]:
        return layer_macs(self.model, self.run.input_shape)

    def measure(self, bits: LayerBits) -> PairRecord:
        """Return accuracy and cost of a pair.

        Raises:
            UserError: bits that were not trained, or a runtime that cannot load the file.
        """
        chosen, bops = Selection(default=bits), self.bops(bits)
        pair, reason = (bits.weight, bits.activation), None
        if self.runtime != TORCH:
            try:
                if deployable(bits):
                    return PairRecord(pair, self._deployed(chosen), self.runtime, bops)
                reason = _FLOATS
            except UnsupportedError as error:
                reason = str(error)
        select_pair(self.model, bits)
        return PairRecord(pair, accuracy(self.model, self.data.test), TORCH, bops, reason)

    def bops(self, bits: LayerBits) -> int:
        """Return the bit operations of an image at a pair; raises as `measure`."""
        given = selected_bits(self.model, Selection(default=bits))
        return total_bops(LayerCost(name, macs, given[name]) for name, macs in self._macs)

    def with_batches(self, known: PairRecord) -> PairRecord:
        """Return `known` with its accuracy on statistics of the test batches."""
        select_pair(self.model, known.pair)
        size = self.run.config.batch_size
        found = transductive_accuracy(self.model, self.data.test, size)
        return replace(known, transductive=found)

    def _deployed(self, chosen: Selection) -> float:
        """Return the accuracy of the file that an export at `chosen` writes."""
        dialect = integer_model_at(RunSource(self.run), chosen, self._has_floats)
        entry = runtime_entry(self.runtime)
        target = TARGETS[entry.runs]()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{target.suffixes[0]}"
            target.write(dialect, path)
            (model,) = open_models([path])
            runtime = entry.open(model.artifacts[entry.runs])
            return top1(outputs_of(model, runtime, self.data, Silent()), self.data.test)

    @property
    def _has_floats(self) -> bool:
        """True where the recipe itself has layers or operators in floating point."""
        config = self.run.config
        return config.allow_float or config.first_last_bits in FLOAT_WIDTHS
