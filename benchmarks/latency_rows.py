"""The latency table: what is said of one engine on one network, and how it is printed."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cases import OPENVINO_INT8, ORT_INT8, Case
from interleaved import Timing

Quartiles = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """One engine on one network; ratios are None where the other row was not measured.

    Args:
        net, engine, threads: what.
        median_ms: processor time with one thread, otherwise `median_wall_ms`.
        median_wall_ms: on the wall.
        ratio_to_openvino_int8, spread_openvino_int8: median and quartiles.
        ratio_to_ort_int8, spread: median and quartiles.
        ratio_to_8_bits: to the row of the same engine on the 8-bit network.
        gmac_per_s: 10^9 multiply-accumulates of convolutions and linear layers a second.
        file_bytes: of the model.
        load: of the machine, before the run.
    """

    net: str
    engine: str
    threads: int
    median_ms: float
    median_wall_ms: float
    ratio_to_openvino_int8: float | None
    spread_openvino_int8: tuple[float, float] | None
    ratio_to_ort_int8: float | None
    spread: tuple[float, float] | None
    ratio_to_8_bits: float | None
    gmac_per_s: float
    file_bytes: int
    load: float


def table_rows(
    net: str,
    threads: int,
    macs: int,
    load: float,
    cases: Mapping[str, Case],
    files: Mapping[str, Path],
    timings: Mapping[str, Timing],
) -> Iterator[Row]:
    """Yield a row per engine; `macs` are those of one image."""

    def ratios(timing: Timing, other: str | None) -> Quartiles | None:
        known = timings.get(other) if other else None
        return None if known is None else timing.ratios(known, threads)

    for name, timing in timings.items():
        milliseconds = statistics.median(timing.turns(threads))
        openvino, ort = ratios(timing, OPENVINO_INT8), ratios(timing, ORT_INT8)
        twin = ratios(timing, cases[name].twin)
        yield Row(
            net, name, threads, milliseconds, statistics.median(timing.wall),
            *split(openvino), *split(ort), twin and twin[1], macs / milliseconds / 1e6,
            files[cases[name].file].stat().st_size, load,
        )  # fmt: skip


def split(found: Quartiles | None) -> tuple[float | None, tuple[float, float] | None]:
    """Return the median, and the quartiles around it."""
    return (None, None) if found is None else (found[1], (found[0], found[2]))


def markdown(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield (
        "| net | engine | threads | ms | wall ms | / OpenVINO int8 | quartiles | / ORT int8 "
        "| quartiles | / 8 bits | GMAC/s | MB |"
    )
    yield "|---" * 12 + "|"
    for row in rows:
        cells = [
            row.net, row.engine, f"{row.threads}", f"{row.median_ms:.2f}",
            f"{row.median_wall_ms:.2f}", number(row.ratio_to_openvino_int8),
            between(row.spread_openvino_int8), number(row.ratio_to_ort_int8),
            between(row.spread), number(row.ratio_to_8_bits), f"{row.gmac_per_s:.0f}",
            f"{row.file_bytes / 1e6:.2f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def number(ratio: float | None) -> str:
    """Return a ratio, empty where there is none."""
    return "" if ratio is None else f"{ratio:.3f}"


def between(spread: tuple[float, float] | None) -> str:
    """Return ``0.98 to 1.02``, empty where there is no ratio."""
    return "" if spread is None else f"{spread[0]:.3f} to {spread[1]:.3f}"
