"""Activation distributions at every bit-width: a table, and a picture like Figures 1 and 6."""

from pathlib import Path
from typing import Any

from rich.table import Table

from qtool.report.plots import SERIES, bits_colour, bits_legend, picture

_STATES = {"float": "without meta-state", "meta": "with meta-state"}
_STATISTICS = {"batch": "batch statistics", "running": "running statistics"}
Group = tuple[str, str, int]  # statistics, state, weight bits


def distances_table(content: dict[str, Any]) -> Table:
    """Return a terminal table of `content` (`qtool.analyses.activations`)."""
    widest = content["reference_bits"]
    table = Table(
        title=f"distance from the distribution at {widest}-bit activations, in its deviations",
        box=None, pad_edge=False, caption="dw: depthwise",
    )  # fmt: skip
    groups = [
        (how, state, weights)
        for how in _STATISTICS for state in _STATES for weights in _ends(content)
    ]  # fmt: skip
    table.add_column("BatchNorm\nstate, weights\nlayer")
    for how, state, weights in groups:
        table.add_column(f"{how}\n{state}\n{weight_name(weights)}", justify="right")
    for layer in content["layers"]:
        if layer["name"] in content["shown"]:
            name = layer["name"] + " (dw)" * layer["depthwise"]
            table.add_row(name, *(f"{layer_distance(layer, g, widest):.3f}" for g in groups))
    means = {
        (case["statistics"], case["state"], case["weights"]): f"{case['distance']:.3f}"
        for case in content["consistency"]
    }
    name = f"mean of {len(content['layers'])} layers"
    table.add_row(name, *(means[group] for group in groups), style="bold")
    return table


def _ends(content: dict[str, Any]) -> list[int]:
    """Return the highest and the lowest weight precision."""
    return list(dict.fromkeys((content["weight_bits"][0], content["weight_bits"][-1])))


def weight_name(bits: int) -> str:
    """Return ``W4``, or ``FP`` for floats."""
    return "FP" if bits == 32 else f"W{bits}"


def layer_distance(layer: dict[str, Any], group: Group, widest: int) -> float:
    """Return a layer's mean distance over the bit-widths below `widest`."""
    rows = _rows(layer, group)
    found = [float(row["distance"]) for row in rows if row["activations"] != widest]
    return sum(found) / max(len(found), 1)


def _rows(layer: dict[str, Any], group: Group) -> list[dict[str, Any]]:
    keys = ("statistics", "state", "weights")
    return [row for row in layer["distributions"] if tuple(row[key] for key in keys) == group]


def distributions_picture(content: dict[str, Any], path: Path) -> None:
    """Draw `content` (`qtool.analyses.activations`) as a PNG.

    Rows: without and with the meta-state, on batch and on running statistics; columns: weight
    precision; a curve per activation bit-width. Below: the distance of every layer.
    """
    columns = len(content["weight_bits"])
    layer = next(x for x in content["layers"] if x["name"] == content["example"])
    with picture(path, 3.5 * columns, 11.5) as figure:
        figure.suptitle(
            f"{content['model']}: input of {layer['name']} before its quantizer", fontsize=11
        )
        top, bottom = figure.subfigures(2, 1, height_ratios=(8, 3.5))
        axes = top.subplots(4, columns, sharex=True, sharey=True, squeeze=False)
        rows = [(how, state) for how in _STATISTICS for state in _STATES]
        for line, (how, state) in zip(axes, rows, strict=True):
            for axis, bits in zip(line, content["weight_bits"], strict=True):
                _densities(axis, content, layer, (how, state, bits))
            line[0].set_ylabel(f"{_STATES[state]}\n{_STATISTICS[how]}", fontsize=8)
        for axis, bits in zip(axes[0], content["weight_bits"], strict=True):
            name = "float weights" if bits == 32 else f"{bits}-bit weights"
            axis.set_title(f"{name}\n{axis.get_title()}", fontsize=9)
        bits_legend(axes[0][-1], content["activation_bits"], "activations", loc="upper right")
        for axis, how in zip(bottom.subplots(1, 2), _STATISTICS, strict=True):
            _distances(axis, content, how)


def _densities(
    axis: Any, content: dict[str, Any], layer: dict[str, Any], group: Group
) -> None:
    """Draw one panel: a curve per activation bit-width."""
    for row in _rows(layer, group):
        axis.stairs(
            row["density"], layer["edges"], lw=1.5, color=bits_colour(row["activations"])
        )
    axis.set_yscale("log")
    far = layer_distance(layer, group, content["reference_bits"])
    axis.set_title(f"distance {far:.3f}", fontsize=9)


def _distances(axis: Any, content: dict[str, Any], how: str) -> None:
    """Draw the distance of every layer, without and with the meta-state."""
    layers, widest = content["layers"], content["reference_bits"]
    for state, colour in zip(_STATES, (SERIES[1], SERIES[0]), strict=True):
        for weights, style in zip(_ends(content), ("-", "--"), strict=False):
            values = [layer_distance(layer, (how, state, weights), widest) for layer in layers]
            mean = sum(values) / len(values)
            label = f"{_STATES[state]}, {weight_name(weights)}: mean {mean:.3f}"
            axis.plot(values, style, marker="o", ms=3, lw=1.4, color=colour, label=label)
    marks = [x["name"] + " (dw)" * x["depthwise"] for x in layers]
    axis.set_xticks(range(len(marks)), marks, rotation=90)
    axis.tick_params("x", labelsize=6 if len(marks) < 30 else 4)
    axis.set_ylim(0, 1.7 * axis.get_ylim()[1])  # the legend fits above
    axis.set_title(_STATISTICS[how], fontsize=9)
    axis.set_ylabel(f"distance from {widest}-bit activations", fontsize=8)
    axis.legend(fontsize=7, frameon=False, loc="upper left")
