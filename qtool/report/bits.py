"""The chosen bits, layer by layer: bars in a terminal, and a PNG."""

from pathlib import Path
from typing import Any

from rich.table import Table

from qtool.cost import format_count
from qtool.files import atomic_path

_COLOURS = {8: "red", 4: "yellow", 3: "green", 2: "cyan"}


def bits_table(content: dict[str, Any]) -> Table:
    """Return a terminal table of bits.json's `content`: a bar per layer."""
    share = 100 * content["bops"] / content["budget_bops"]
    table = Table(
        title=f"bits: {format_count(content['bops'])}BOPs, {share:.1f} % of the budget",
        box=None, pad_edge=False,
    )  # fmt: skip
    for name in ("layer", "W", "A", "input activation bits", "MACs"):
        table.add_column(
            name, justify="left" if name in ("layer", "input activation bits") else "right"
        )
    for layer, (weight, activation) in content["layers"].items():
        colour = _COLOURS.get(activation, "white")
        bar = f"[{colour}]{'█' * activation}[/]"
        macs = f"{content['layer_macs'][layer]:,}"
        table.add_row(layer, str(weight), str(activation), bar, macs)
    return table


def bits_picture(content: dict[str, Any], path: Path) -> None:
    """Draw bits.json's `content` as a PNG: activation bits above MACs, per layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers = list(content["layers"])
    bits = [content["layers"][layer][1] for layer in layers]
    macs = [content["layer_macs"][layer] / 1e3 for layer in layers]
    figure, (top, bottom) = pyplot.subplots(
        2, 1, sharex=True, figsize=(10, 5.4), height_ratios=(3, 1), layout="constrained"
    )
    colours = ["#c0392b" if b == 8 else "#e0a030" if b == 4 else "#3b8f5a" for b in bits]
    bars = top.bar(range(len(layers)), bits, color=colours)
    top.bar_label(bars, [str(b) for b in bits], fontsize=8)
    top.set_ylabel("input activation bits")
    top.set_ylim(0, 9)
    share = 100 * content["bops"] / content["budget_bops"]
    top.set_title(
        f"{format_count(content['bops'])}BOPs, {share:.1f} % of the budget "
        f"{format_count(content['budget_bops'])}"
    )
    bottom.bar(range(len(layers)), macs, color="#7f8c9a")
    bottom.set_ylabel("MACs / 1000")
    bottom.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=7)
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
