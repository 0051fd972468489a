"""What each choice of glue grids costs, as a terminal table."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table


def glue_table(bits: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table of `rows`, each with ``glue``, ``accuracy`` (percent) and ``images``.

    The first row, glue in floating point, is what the loss is counted from.
    """
    table = Table(title=f"glue grids at {bits}, {rows[0]['images']:,} test images")
    for name in ("glue", "accuracy", "lost"):
        table.add_column(name, justify="left" if name == "glue" else "right")
    for row in rows:
        lost = rows[0]["accuracy"] - row["accuracy"]
        table.add_row(row["glue"], f"{row['accuracy']:.2f} %", f"{lost:.2f}")
    return table
