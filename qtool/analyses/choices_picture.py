"""The picture of `qtool.analyses.choices`: bits of every run above traces and operations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtool.core.cost import format_count
from qtool.report.plots import GREY, SERIES, bits_colour, picture

_RHO = r"$\rho$"
Rows = Sequence[Mapping[str, Any]]
_FIXED = "#c3c9d0"
_WEIGHT, _INPUT, _DEPTHWISE = GREY, SERIES[0], "#b0451c"


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw what `qtool.analyses.choices.analyse` returned as a PNG."""
    layers, runs = content["layers"], content["runs"]
    heights = (*[1.0] * len(runs), 1.4, 1.0, 1.4)
    width = max(8.0, 2.0 + 0.23 * len(layers))
    with picture(path, width, 1.9 * sum(heights) + 0.8) as figure:
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        for axis, run in zip(axes, runs, strict=False):
            _draw_bits(axis, run, layers)
        _draw_traces(axes[-3], content, "", "Hessian trace")
        _draw_macs(axes[-2], content)
        _draw_traces(axes[-1], content, "_per_mac", "Hessian trace / MACs")
        _name_layers(axes[-1], layers)


def _draw_bits(axis: Any, run: Mapping[str, Any], layers: Rows) -> None:
    """Draw one bar per layer: its input's bits; its weight's above where those vary."""
    pairs = [run["bits"][layer["name"]] for layer in layers]
    colours = [
        bits_colour(a) if layer["open"] else _FIXED
        for layer, (_, a) in zip(layers, pairs, strict=True)
    ]
    bars = axis.bar(range(len(layers)), [a for _, a in pairs], color=colours)
    inner = {w for layer, (w, _) in zip(layers, pairs, strict=True) if layer["open"]}
    same = len(inner) == 1
    labels = [str(a) if same else f"{a}\nW{w}" for w, a in pairs]
    axis.bar_label(bars, labels, fontsize=7)
    axis.set_ylim(0, 10 if same else 12)
    axis.set_yticks([0, 2, 4, 6, 8])
    axis.set_ylabel("input bits", fontsize=9)
    bops = "" if run["bops"] is None else f"   {format_count(run['bops'])}BOPs"
    weights = f"   weights {inner.pop()} bits" if same else ""
    grey = "   (grey: not searched)" if not all(layer["open"] for layer in layers) else ""
    axis.set_title(f"{run['name']}{bops}{weights}{grey}", fontsize=9, loc="left")


def _draw_traces(axis: Any, content: Mapping[str, Any], suffix: str, what: str) -> None:
    """Draw both traces on a logarithmic axis, with the errors that the probes leave."""
    layers, places = content["layers"], range(len(content["layers"]))
    for kind, name, colour, marker in (
        ("weight", "weight", _WEIGHT, "s"), ("activation", "input", _INPUT, "o"),
    ):  # fmt: skip
        values = [layer[f"{kind}_trace{suffix}"] for layer in layers]
        scale = [layer["macs"] if suffix else 1 for layer in layers]
        errors = [
            layer[f"{kind}_trace_error"] / s for layer, s in zip(layers, scale, strict=True)
        ]
        hidden = sum(value <= 0 for value in values)
        label = f"{name}: {_correlations(content, f'{kind}_trace{suffix}')}"
        label += f" ({hidden} of {len(values)} ≤ 0: not drawn)" if hidden else ""
        drawn = [value if value > 0 else float("nan") for value in values]
        # On a logarithmic axis a bar that reaches 0 would fill the panel.
        down = [min(e, 0.6 * abs(v)) for e, v in zip(errors, values, strict=True)]
        axis.errorbar(
            places, drawn, yerr=[down, errors], color=colour, marker=marker, ms=4, lw=1,
            elinewidth=0.7, label=label,
        )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylabel(what, fontsize=9)
    # Above the axis: inside, it would hide some layer's trace.
    axis.legend(
        fontsize=9, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.01, 0.97)
    )
    axis.grid(axis="x", color="#e4e8ec", lw=0.6)


def _draw_macs(axis: Any, content: Mapping[str, Any]) -> None:
    layers = content["layers"]
    axis.bar(range(len(layers)), [layer["macs"] / 1e6 for layer in layers], color=_WEIGHT)
    axis.set_ylabel("MACs / 10⁶", fontsize=9)
    order = ", of the runs in the order above" if len(content["runs"]) > 1 else ""
    meaning = f"   ({_RHO}: rank correlation with searched bits{order})"
    axis.set_title(_correlations(content, "macs") + meaning, fontsize=9, loc="left")


def _correlations(content: Mapping[str, Any], measure: str) -> str:
    """Say the measure's rank correlation with the bits of each run, in their order."""
    values = [run["rank_correlation"][measure] for run in content["runs"]]
    shown = " / ".join("none" if value is None else f"{value:+.2f}" for value in values)
    return f"{_RHO} {shown}"


def _name_layers(axis: Any, layers: Rows) -> None:
    """Write the layers' names below, without the beginning that all share."""
    names = [layer["name"] for layer in layers]
    heads = {name.partition(".")[0] for name in names}
    if len(heads) == 1 and all("." in name for name in names):
        names = [name.partition(".")[2] for name in names]
    axis.set_xticks(range(len(layers)), names, rotation=90, fontsize=7)
    axis.set_xlim(-0.7, len(layers) - 0.3)
    for label, layer in zip(axis.get_xticklabels(), layers, strict=True):
        if layer["depthwise"]:
            label.set_color(_DEPTHWISE)
    if any(layer["depthwise"] for layer in layers):
        axis.set_xlabel("layers (depthwise or grouped ones in brown)", fontsize=9)
    else:
        axis.set_xlabel("layers", fontsize=9)
