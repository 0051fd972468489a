"""What a check requires, and a sentence for everything that is missed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtool.checking.record import CheckRecord, ParityRecord
from qtool.core.errors import MissedBar
from qtool.witness.record import WitnessRecord
from qtool.witness.verdict import shown
from runtimes.registry import EXACT, RUNTIMES


@dataclass(frozen=True)
class Bars:
    """What `check` requires; None asks for nothing."""

    min_accuracy: float | None = None
    max_bops: float | None = None
    parity: bool = False
    original: bool = False
    min_snr: float | None = None


def missed_bars(record: CheckRecord, bars: Bars) -> list[str]:
    """Return a sentence for every bar that `record` misses: which, and by how much."""
    deployed = {k: v for k, v in record.accuracy.items() if k in RUNTIMES}
    missed = [
        f"accuracy in {name} is {value:.2f} %, {bars.min_accuracy - value:.2f} below the "
        f"required {bars.min_accuracy:g} %"
        for name, value in deployed.items()
        if bars.min_accuracy is not None and value < bars.min_accuracy
    ]
    if bars.max_bops is not None and record.bops > bars.max_bops:
        over = record.bops - bars.max_bops
        missed.append(f"BOPs are {record.bops:,}, {over:,.0f} above {bars.max_bops:,.0f}")
    if bars.parity:
        missed += _missed_parity(record.parity)
    return missed + _missed_original(record.original, bars)


def require(records: Sequence[CheckRecord], bars: Bars) -> None:
    """Raise `MissedBar` if any of `records` misses any of `bars`."""
    missed = [sentence for record in records for sentence in missed_bars(record, bars)]
    if missed:
        raise MissedBar("; ".join(missed))


def _missed_parity(parity: Mapping[str, ParityRecord]) -> list[str]:
    required = {name: p for name, p in parity.items() if p.required}
    if not required:
        return [f"parity needs at least two runtimes to compare, of {', '.join(EXACT)}"]
    return [
        f"{name} differs from {p.against} in {p.mismatched:,} of {p.compared:,} "
        f"integers (up to {p.max_lsb} LSB, first at {p.first_divergence.tensor})"
        + (f": {p.reason}" if p.reason else "")
        for name, p in required.items()
        if p.first_divergence is not None
    ]


def _missed_original(witness: WitnessRecord | None, bars: Bars) -> list[str]:
    if witness is None:
        asked = bars.original or bars.min_snr is not None
        return ["nothing to compare with: give --original"] * asked
    missed = []
    if bars.original and witness.fallen:
        missed.append(f"not what {witness.origin} computes: {shown(witness)}")
    if bars.min_snr is not None and witness.snr_db is not None:
        if witness.snr_db < bars.min_snr:
            missed.append(
                f"the output is {witness.snr_db:.1f} dB from {witness.origin}, "
                f"{bars.min_snr - witness.snr_db:.1f} below the required {bars.min_snr:g} dB"
            )
    return missed
