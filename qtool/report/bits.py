"""The chosen bits, layer by layer: bars in a terminal, and a PNG.

Weights have bars of their own where they differ between inner layers: the first and the last
layer nearly always have other bits than the rest.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from qtool.core.cost import format_count
from qtool.core.selection import BITS_FORMAT, LayerBits, selection_from_json
from qtool.report.plots import GREY, bits_colour, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours in a terminal; more bits are floating point.
_COLOURS = {
    8: "red", 7: "bright_red", 6: "dark_orange", 5: "orange1", 4: "yellow", 3: "green",
    2: "cyan", 1: "blue",
}  # fmt: skip
_FLOAT_COLOUR = "white"
_WIDEST = max(_COLOURS)
_OTHERS = "(all others)"
# What was reached, what was asked for, how it reads.
_COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("bops", "budget_bops", lambda count: f"{format_count(count)}BOPs"),
    ("bytes", "budget_bytes", lambda count: f"{format_count(count)}B of weights"),
    ("seconds", "budget_seconds", lambda seconds: f"{1e3 * seconds:.3f} ms"),
)


def bits_table(content: dict[str, Any]) -> Table:
    """Return a terminal table of a bits file's `content`: a bar per layer."""
    rows, macs = _rows(content), content.get("layer_macs", {})
    bars = ["input activation bits", "weight bits"][: 1 + _weights_vary(rows)]
    table = Table(title=_title(content), box=None, pad_edge=False)
    for name in ("layer", "W", "A", *bars, *(["MACs"] if macs else [])):
        left = name == "layer" or name in bars
        table.add_column(name, justify="left" if left else "right")
    for layer, bits in rows.items():
        widths = (bits.activation, bits.weight)[: len(bars)]
        cells = [layer, str(bits.weight), str(bits.activation), *map(_bar, widths)]
        if macs:
            cells.append(f"{macs[layer]:,}" if layer in macs else "")
        table.add_row(*cells)
    return table


def bits_picture(content: dict[str, Any], path: Path) -> None:
    """Draw a bits file's `content` as a PNG: bits above MACs, per layer."""
    rows, macs = _rows(content), content.get("layer_macs", {})
    panels = [("input activation bits", [bits.activation for bits in rows.values()])]
    if _weights_vary(rows):
        panels.append(("weight bits", [bits.weight for bits in rows.values()]))
    heights = [3.0] * len(panels) + [1.0] * bool(macs)
    with picture(path, 10, 1.4 + sum(heights)) as figure:
        grid = figure.subplots(
            len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
        )
        axes = list(grid[:, 0])
        for axis, (what, bits) in zip(axes, panels, strict=False):
            _bars(axis, what, bits)
        if macs:
            counts = [macs.get(layer, 0) / 1e3 for layer in rows]
            axes[-1].bar(range(len(rows)), counts, color=GREY)
            axes[-1].set_ylabel("MACs / 1000")
        axes[0].set_title(_title(content))
        axes[-1].set_xticks(range(len(rows)), list(rows), rotation=60, ha="right", fontsize=7)


def _rows(content: dict[str, Any]) -> dict[str, LayerBits]:
    """Return bits by layer or pattern, the default last."""
    selection = selection_from_json({"format": BITS_FORMAT, **content}, "to show")
    default = {} if selection.default is None else {_OTHERS: selection.default}
    return {**selection.layers, **default}


def _weights_vary(rows: dict[str, LayerBits]) -> bool:
    return len({bits.weight for bits in list(rows.values())[1:-1]}) > 1


def _title(content: dict[str, Any]) -> str:
    """Return ``bits: 49.885 MBOPs, 99.8 % of the budget``, with all costs that are known."""
    said = []
    for key, budget_key, text in _COSTS:
        cost, budget = content.get(key), content.get(budget_key)
        if cost is not None:
            share = "" if budget is None else f", {100 * cost / budget:.1f} % of the budget"
            said.append(text(cost) + share)
        elif budget is not None:
            said.append(f"budget {text(budget)}")
    return "bits" + (": " if said else "") + "; ".join(said)


def _bar(bits: int) -> str:
    return f"[{_COLOURS.get(bits, _FLOAT_COLOUR)}]{'█' * min(bits, _WIDEST)}[/]"


def _bars(axis: "Axes", what: str, bits: Sequence[int]) -> None:
    """Draw one bar per layer; those of floating point are cut off."""
    colours = [bits_colour(width) for width in bits]
    heights = [min(width, _WIDEST) for width in bits]
    drawn = axis.bar(range(len(bits)), heights, color=colours)
    axis.bar_label(drawn, [str(width) for width in bits], fontsize=8)
    axis.set_ylabel(what)
    axis.set_ylim(0, _WIDEST + 1)
