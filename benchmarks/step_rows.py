"""The table of training steps: what is said of one variant of one network, and how."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from interleaved import Timing
from latency_rows import between, number
from step_networks import BITS, Variant


@dataclass(frozen=True)
class Peaks:
    """Memory of a step beyond what was there before the network, as `step_engine` says."""

    peak_bytes: int
    peak_rss_bytes: int | None


@dataclass(frozen=True)
class Row:
    """One variant of one network.

    Args:
        net, quantizer, mode, integer_only, batch, threads: what.
        bits: of inner layers, "w4a4" or "float".
        ms_per_step: median; processor time with one thread, otherwise `wall_ms_per_step`.
        wall_ms_per_step: on the wall.
        ratio_to_float, spread: to the float row, median and quartiles over the rounds.
        peak_bytes: of tensors, in a step.
        ratio_peak: to the float row's.
        peak_rss_bytes: of the process, None where the system does not tell.
        load: of the machine, before the run.
    """

    net: str
    quantizer: str
    mode: str
    integer_only: bool
    batch: int
    threads: int
    bits: str
    ms_per_step: float
    wall_ms_per_step: float
    ratio_to_float: float
    spread: tuple[float, float]
    peak_bytes: int
    ratio_peak: float
    peak_rss_bytes: int | None
    load: float


def table_rows(
    net: str,
    batch: int,
    threads: int,
    load: float,
    timings: Mapping[Variant, Timing],
    peaks: Mapping[Variant, Peaks],
) -> Iterator[Row]:
    """Yield a row per variant; "float" must be among them."""
    base = Variant("float")
    for variant, timing in timings.items():
        low, ratio, high = timing.ratios(timings[base], threads)
        peak = peaks[variant]
        yield Row(
            net, variant.quantizer, variant.mode, variant.integer_only, batch, threads,
            "float" if variant == base else f"w{BITS}a{BITS}",
            statistics.median(timing.turns(threads)), statistics.median(timing.wall),
            ratio, (low, high), peak.peak_bytes, peak.peak_bytes / peaks[base].peak_bytes,
            peak.peak_rss_bytes, load,
        )  # fmt: skip


def markdown(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield (
        "| net | quantizer | mode | grids between layers | ms | / float | quartiles | peak MB "
        "| / float | process MB |"
    )
    yield "|---" * 10 + "|"
    for row in rows:
        resident = row.peak_rss_bytes
        cells = [
            row.net, row.quantizer, row.mode, "yes" if row.integer_only else "",
            f"{row.ms_per_step:.0f}", number(row.ratio_to_float), between(row.spread),
            f"{row.peak_bytes / 1e6:.0f}", f"{row.ratio_peak:.2f}",
            "" if resident is None else f"{resident / 1e6:.0f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"
