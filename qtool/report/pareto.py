"""Accuracy against BOPs: a table, and a picture like Figure 5."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from qtool.core.cost import format_count
from qtool.report.plots import GREY, SERIES, picture
from qtool.search.front import FrontRecord, Point, Uniform, on_front

_MARKERS = "osD^vP*X"


def points_table(content: dict[str, Any]) -> Table:
    """Return a terminal table of `content` (`qtool.analyses.pareto`)."""
    table = Table(title="accuracy against BOPs; *: on its method's front", box=None)
    table.add_column("method")
    for name in ("BOPs", "accuracy"):
        table.add_column(name, justify="right")
    for name in ("of the", "W", "A", "run"):
        table.add_column(name)
    for point in content["points"]:
        table.add_row(
            point["method"], format_count(point["bops"]),
            f"{point['accuracy']:.2f} %" + ("*" if point["front"] else " "),
            "integer model" if point["deployed"] else "fake-quantized network",
            _list(point["weights"]), _list(point["activations"]), point["run"],
        )  # fmt: skip
    for run, value in content["float_accuracy"].items():
        table.add_row("float", "", f"{value:.2f} % ", "float network", "32", "32", run)
    return table


def joint_table(record: FrontRecord) -> Table:
    """Return a terminal table of a jointly trained run's front, by BOPs."""
    table = Table(
        title=f"accuracy on {record.question.images:,} training images held out of the "
        "search; *: no other bits are as accurate at no more BOPs",
        box=None,
    )
    table.add_column("bits")
    for name in ("BOPs", "accuracy"):
        table.add_column(name, justify="right")
    rows = [(p.bops, p.held_out, p.front, p.run) for p in record.points]
    rows += [(p.bops, p.held_out, p.front, f"{p.bits}, all layers") for p in record.uniform]
    for bops, accuracy, front, name in sorted(rows, key=lambda row: row[0]):
        star = "*" if front else " "
        table.add_row(name, format_count(bops), f"{accuracy:.2f} %{star}")
    return table


def joint_picture(record: FrontRecord, path: Path) -> None:
    """Draw a jointly trained run's front as a PNG: searched bits, and uniform ones."""
    series: dict[str, Sequence[Point | Uniform]] = {
        f"bits by layer ({record.question.method})": record.points,
        "the same bits for all layers": record.uniform,
    }
    points = []
    for name, mine in series.items():
        marks = on_front([(point.bops, point.held_out) for point in mine])
        points += [
            {"method": name, "bops": point.bops, "accuracy": point.held_out, "front": mark,
             "deployed": True}
            for point, mark in zip(mine, marks, strict=True)
        ]  # fmt: skip
    what = f"accuracy on {record.question.images:,} held-out images / %"
    front_picture({"points": points, "float_accuracy": {}}, path, what)


def _list(bits: Sequence[int]) -> str:
    return ",".join(map(str, bits))


def front_picture(
    content: dict[str, Any], path: Path, what: str = "top-1 accuracy / %"
) -> None:
    """Draw `content` (`qtool.analyses.pareto`) as a PNG; `what` is on the vertical axis.

    Filled: accuracy of the integer model; hollow: of the fake-quantized network. A line per
    method joins its front; dashed: the float networks.
    """
    points = content["points"]
    unit, name = _unit([point["bops"] for point in points])
    with picture(path, 7.5, 5) as figure:
        axis = figure.subplots()
        methods = list(dict.fromkeys(point["method"] for point in points))
        for index, method in enumerate(methods):
            mine = [point for point in points if point["method"] == method]
            style = {
                "color": SERIES[index % len(SERIES)],
                "marker": _MARKERS[index % len(_MARKERS)],
            }
            _method(axis, mine, unit, style, method)
        for value in sorted({round(v, 2) for v in content["float_accuracy"].values()}):
            axis.axhline(value, color=GREY, lw=1.2, ls="--", label=f"float: {value:.2f} %")
        if not all(point["deployed"] for point in points):
            axis.plot([], [], "o", mfc="none", color=GREY, label="hollow: fake-quantized")
        axis.set_xlabel(f"{name} per image (MACs x weight bits x activation bits)", fontsize=9)
        axis.set_ylabel(what, fontsize=9)
        axis.margins(0.08)
        axis.grid(alpha=0.25, lw=0.6)
        axis.legend(fontsize=8, frameon=False, loc="best")


def _unit(bops: Sequence[int]) -> tuple[float, str]:
    """Return what the axis counts in, and its name."""
    return (1e9, "GBOPs") if max(bops, default=0) >= 1e9 else (1e6, "MBOPs")


def _method(
    axis: Any, points: list[dict[str, Any]], unit: float, style: dict[str, Any], label: str
) -> None:
    """Draw the points of one method and its front."""
    front = [point for point in points if point["front"]]
    xs, ys = [p["bops"] / unit for p in front], [p["accuracy"] for p in front]
    axis.plot(xs, ys, lw=1.4, ms=6, label=label, **style)
    for point in points:
        colour = style["color"] if point["deployed"] else "white"
        place = ([point["bops"] / unit], [point["accuracy"]])
        axis.plot(*place, ls="", ms=6, mfc=colour, alpha=1 if point["front"] else 0.6, **style)
