"""What the pictures of a report have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtool.core.files import atomic_path

_BITS = {
    32: "#222222", 8: "#c0392b", 7: "#a0522d", 6: "#8e5ea2", 5: "#d0689b", 4: "#e0a030",
    3: "#3b8f5a", 2: "#2f6fb0", 1: "#6b4f3a",
}  # fmt: skip
GREY = "#7f8c9a"
SERIES = ("#2f6fb0", "#c0392b", "#3b8f5a", "#e0a030", "#8e5ea2", "#6b4f3a", "#222222")

_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def bits_colour(bits: int) -> str:
    """Return the colour of a bit-width, the same one in every picture."""
    return _BITS.get(bits, GREY)


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Any]:
    """Yield an empty matplotlib figure; write it to `path`, atomically, when all went well.

    Args:
        path: a PNG file.
        width: in inches, of 110 pixels each.
        height: in inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    try:
        with matplotlib.rc_context(_STYLE):
            yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
    finally:
        pyplot.close(figure)


def bits_legend(axis: Any, bits: list[int], what: str, **options: Any) -> None:
    """Put a legend of bit-widths into `axis`, a matplotlib one.

    Args:
        axis: where.
        bits: in the order of the legend.
        what: they are the bits of, such as "activations".
        **options: of matplotlib's legend.
    """
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=bits_colour(b), lw=2, label=f"{b}-bit {what}") for b in bits]
    axis.legend(handles=lines, fontsize=8, frameon=False, **options)
