"""Accuracy and cost of a few-shot run at one pair of bit-widths, on episodes of new classes.

An episode's classes are in no file: its network is made as `qtool adapt` makes it, in memory,
and evaluated in torch, which computes the integers of the exported file.
"""

from dataclasses import dataclass, field, replace

from qtool.checking.grid_record import TORCH, PairRecord
from qtool.checking.meter import Meter
from qtool.core.pairs import deployable
from qtool.core.selection import LayerBits
from qtool.training.episode_tests import EpisodeTester

_INTEGERS = "the integers of each episode's network, which is never written to a file"
_FLOATS = "16 and 32 bits are floating point"
_NO_FILE = "weights of this quantizer and so many bits have no integer form that adapt exports"


@dataclass
class EpisodeMeter(Meter):
    """Measures `run` on `episodes` of the test classes of `data`, with `tester`."""

    tester: EpisodeTester = field(kw_only=True)

    def measure(self, bits: LayerBits) -> PairRecord:
        """Return accuracy and cost of a pair; as integers where an exported file has it."""
        accuracy, device = self.tester.deployed(bits, self.episodes)
        found, pair = device or accuracy, (bits.weight, bits.activation)
        reason = _INTEGERS if device else _NO_FILE if deployable(bits) else _FLOATS
        return PairRecord(
            pair, found.mean, TORCH, self.bops(bits), reason, interval=found.interval
        )

    def with_batches(self, known: PairRecord) -> PairRecord:
        """Return `known` with its accuracy on statistics of each episode's images."""
        found = self.tester.transductive(known.pair, self.episodes)
        return replace(known, transductive=found.mean, transductive_interval=found.interval)
