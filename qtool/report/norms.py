"""A running variance while bits change: a table, and a picture like Figure 2."""

from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from qtool.report.plots import bits_colour, bits_legend, picture


def variation_table(content: dict[str, Any]) -> Table:
    """Return a terminal table of `content` (`qtool.analyses.norms`)."""
    table = Table(
        title=f"running variance behind {content['layer']}, by its activation bits",
        box=None, pad_edge=False,
    )  # fmt: skip
    table.add_column("case")
    bits = [str(b) for b in content["activation_bits"]]
    for name in (*(f"{b} bits" for b in bits), "variation", "noise", "of a channel"):
        table.add_column(name, justify="right")
    for case in content["cases"]:
        means = [f"{case['by_bits'][b]:.3f}" for b in bits]
        keys = ("variation", "noise", "channel_variation")
        shares = [f"{100 * case[key]:.2f} %" for key in keys]
        table.add_row(case_name(case), *means, *shares)
    return table


def case_name(case: dict[str, Any]) -> str:
    """Return what a case is called in tables and pictures."""
    if case["state"] == "meta":
        return "meta-state with bit-meta steps"
    return "float weights" if case["weights"] == 32 else f"{case['weights']}-bit weights"


def traces_picture(content: dict[str, Any], path: Path) -> None:
    """Draw `content` (`qtool.analyses.norms`) as a PNG: a trace per case, over its mean."""
    cases = content["cases"]
    with picture(path, 9.5, 2.2 * len(cases) + 0.8) as figure:
        kind = "depthwise layer" if content["depthwise"] else "layer"
        figure.suptitle(
            f"{content['model']}: running variance behind {kind} {content['layer']}",
            fontsize=11,
        )
        axes = figure.subplots(len(cases), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axis, case in zip(axes, cases, strict=True):
            _trace(axis, case["variance"], content["activations"])
            share, noise = 100 * case["variation"], 100 * case["noise"]
            found = f"varies by {share:.2f} % between bits (noise {noise:.2f} %)"
            axis.set_title(f"{case_name(case)}: {found}", fontsize=9)
            axis.set_ylabel("variance / its mean", fontsize=9)
        axes[-1].set_xlabel("step", fontsize=9)
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        bits = content["activation_bits"]
        bits_legend(axes[0], bits, "input", ncols=len(bits), loc="upper right")


def _trace(axis: Any, variance: list[float], activations: list[int]) -> None:
    """Draw one trace, each stretch in the colour of its bits."""
    mean = sum(variance) / len(variance) or 1.0
    values, start = [v / mean for v in variance], 0
    for bits, stretch in groupby(activations):
        stop = start + len(list(stretch))
        first = max(start - 1, 0)  # from where the last stretch ended
        style = {"color": bits_colour(bits), "lw": 2, "solid_capstyle": "round"}
        axis.plot(range(first, stop), values[first:stop], **style)
        axis.axvspan(start - 0.5, stop - 0.5, color=bits_colour(bits), alpha=0.07, lw=0)
        start = stop
