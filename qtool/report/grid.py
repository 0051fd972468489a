"""Accuracy over pairs of bit-widths: a table, a heat map, and what one model for all saves.

Rows are bit-widths of weights, columns those of layers' inputs, floating point last.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from qtool.checking.grid_record import TORCH, GridRecord, PairRecord, Savings
from qtool.core.cost import format_count
from qtool.core.pairs import width_name
from qtool.report.plots import GREY, picture

_IN_TORCH, _UNTRAINED = "*", "°"
# Percent below the best pair from which on colours say nothing more: such a pair failed.
_SPAN = 10.0


def grid_table(record: GridRecord) -> Table:
    """Return a terminal table of `record`; `grid_title` stands above, `grid_notes` below."""
    # Their lines are often wider than the table, which would break them.
    table = Table(box=None, pad_edge=False)
    weights, activations = _axes(record)
    table.add_column("weights")
    for width in activations:
        table.add_column(f"a {width_name(width)}", justify="right")
    for weight in weights:
        found = [_pair(record, weight, activation) for activation in activations]
        table.add_row(f"w {width_name(weight)}", *map(_cell, found))
    return table


def savings_lines(savings: Savings) -> list[str]:
    """Return in words what `qtool.checking.savings` found; nothing where all is one pair."""
    if savings.pairs < 2:
        return []
    models = f"{savings.pairs} models of one pair each"
    lines = [
        f"storage: {format_count(savings.adaptive_bytes)}B for all pairs, "
        f"{format_count(savings.dedicated_bytes)}B for {models}: {_less(savings.storage)} "
        f"({savings.storage_if_equal:.1f} % were all as large as this one)"
    ]
    if savings.passes is not None:
        lines.append(
            f"training: {savings.adaptive_passes:,} back-propagations, "
            f"{savings.dedicated_passes:,} for {models}: {_less(savings.passes)}"
        )
    return lines


def _less(percent: float) -> str:
    return f"{abs(percent):.1f} % {'more' if percent < 0 else 'less'}"


def grid_picture(record: GridRecord, path: Path) -> None:
    """Draw `record` as a PNG: accuracy as colour, and as numbers above the BOPs."""
    weights, activations = _axes(record)
    with picture(path, 2.2 + 0.85 * len(activations), 1.7 + 0.6 * len(weights)) as figure:
        axis = figure.subplots()
        best = max(pair.accuracy for pair in record.pairs.values())
        worst = min(pair.accuracy for pair in record.pairs.values())
        low = max(worst, best - _SPAN)
        values = [[_value(_pair(record, w, a)) for a in activations] for w in weights]
        drawn = axis.imshow(values, cmap="Blues", vmin=low, vmax=best, aspect="auto")
        axis.set_facecolor("#eeeeee")  # of pairs that are not there
        for pair in record.pairs.values():
            place = activations.index(pair.bits[1]), weights.index(pair.bits[0])
            is_dark = pair.accuracy - low > 0.6 * (best - low) > 0
            _number(axis, place, pair, "white" if is_dark else "black")
        axis.set_xticks(range(len(activations)), [width_name(a) for a in activations])
        axis.set_yticks(range(len(weights)), [width_name(w) for w in weights])
        axis.set_xlabel("bits of layers' inputs", fontsize=9)
        axis.set_ylabel("bits of weights", fontsize=9)
        axis.set_title(grid_title(record).replace(", ", "\n", 1), fontsize=9)
        figure.colorbar(drawn, ax=axis, extend="min" if worst < low else "neither")
        if any(pair.where == TORCH for pair in record.pairs.values()):
            figure.supxlabel(f"{_IN_TORCH} in torch", fontsize=7, color=GREY)


def _number(axis: Any, place: tuple[int, int], pair: PairRecord, colour: str) -> None:
    """Write a pair's accuracy and BOPs into its cell."""
    x, y = place
    style = {"ha": "center", "va": "center", "color": colour}
    axis.text(x, y - 0.13, f"{pair.accuracy:.2f}{_mark(pair)}", fontsize=8, **style)
    axis.text(x, y + 0.22, format_count(pair.bops), fontsize=5.5, **style)


def _axes(record: GridRecord) -> tuple[list[int], list[int]]:
    """Return the bit-widths of weights and of inputs, narrow ones first."""
    pairs = [pair.bits for pair in record.pairs.values()]
    return sorted({w for w, _ in pairs}), sorted({a for _, a in pairs})


def _pair(record: GridRecord, weight: int, activation: int) -> PairRecord | None:
    wanted = (weight, activation)
    return next((pair for pair in record.pairs.values() if pair.bits == wanted), None)


def _value(pair: PairRecord | None) -> float:
    return float("nan") if pair is None else pair.accuracy


def _cell(pair: PairRecord | None) -> str:
    if pair is None:
        return ""
    shown = f"{_percent(pair.accuracy, pair.interval)}{_mark(pair) or ' '}"
    if pair.transductive is None:
        return shown
    return f"{shown}\n({_percent(pair.transductive, pair.transductive_interval)})"


def _percent(accuracy: float, interval: float | None) -> str:
    return f"{accuracy:.2f}" + ("" if interval is None else f" ±{interval:.2f}")


def _mark(pair: PairRecord) -> str:
    return _IN_TORCH * (pair.where == TORCH) + _UNTRAINED * (pair.zero_shot is not None)


def grid_title(record: GridRecord) -> str:
    """Return what was measured."""
    return f"top-1 accuracy in percent, {record.question}"


def grid_notes(record: GridRecord) -> list[str]:
    """Return what the marks mean, and what the pairs cost, a line each."""
    pairs = list(record.pairs.values())
    costs = sorted(pair.bops for pair in pairs)
    lines = [f"{format_count(costs[0])}BOPs to {format_count(costs[-1])}BOPs per image"]
    if any(pair.where == TORCH for pair in pairs):
        lines += [f"{_IN_TORCH} in torch{reason}" for reason in _reasons(pairs)]
    lines += [f"{_UNTRAINED} {pair.zero_shot}" for pair in pairs if pair.zero_shot is not None]
    if any(pair.transductive is not None for pair in pairs):
        batches = "each episode's images" if record.question.episodes else "the test batches"
        lines.append(f"(in brackets) with BatchNorm's statistics of {batches}")
    if any(pair.interval is not None for pair in pairs):
        lines.append("± half the 95 % interval over episodes")
    return lines


def _reasons(pairs: Sequence[PairRecord]) -> list[str]:
    """Return why pairs were measured in torch, each reason once; "" where it was asked for."""
    found = (pair.reason for pair in pairs if pair.where == TORCH)
    return list(dict.fromkeys("" if reason is None else f": {reason}" for reason in found))
