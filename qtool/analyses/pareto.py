"""Accuracy against BOPs of several runs and their sub-runs (Figure 5).

A point is on its method's *front* when no other point of the method has at least its accuracy
at no more BOPs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.analyses.pareto_points import float_accuracy, points_of
from qtool.core.progress import Progress
from qtool.data.images import DataSet
from qtool.runs.run import Run
from qtool.search.front import on_front

if TYPE_CHECKING:
    from rich.table import Table


def analyse(
    runs: Sequence[Run], data: DataSet | None, images: int, progress: Progress
) -> dict[str, Any]:
    """Collect what is known of `runs`; nothing is computed, `data` and `images` not used.

    Returns:
        ``points``, by method and BOPs: ``run``, ``bops`` per image, ``budget_bops``,
        ``accuracy`` (top-1, percent), ``deployed`` (True: of the integer model, False: of the
        fake-quantized network), ``method``, ``weights`` and ``activations`` (the bit-widths
        in it), ``source`` (the file that says so), ``front``; ``float_accuracy`` by run.

    Raises:
        UserError: a run without bits or accuracy, or a damaged file.
    """
    points = [point for run in runs for point in points_of(run, progress)]
    points.sort(key=lambda point: (point["method"], point["bops"], -point["accuracy"]))
    for method in {point["method"] for point in points}:
        mine = [point for point in points if point["method"] == method]
        marks = on_front([(point["bops"], point["accuracy"]) for point in mine])
        for point, mark in zip(mine, marks, strict=True):
            point["front"] = mark
    known = {str(run.folder): float_accuracy(run) for run in runs}
    return {
        "points": points,
        "float_accuracy": {run: value for run, value in known.items() if value is not None},
    }


def table(content: dict[str, Any]) -> "Table":
    """Return a row per point."""
    from qtool.report.pareto import points_table

    return points_table(content)


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw the points and every method's front as a PNG."""
    from qtool.report.pareto import front_picture

    front_picture(content, path)
