"""Accuracy against individually trained networks as a terminal table."""

from rich.table import Table

from qtool.checking.delta import Delta


def delta_table(delta: Delta) -> Table:
    """Return a row a pair; `delta_line` stands below."""
    table = Table(box=None, pad_edge=False)
    for name in ("bits", "this run", "individual", "relative"):
        table.add_column(name, justify="left" if name == "bits" else "right")
    table.add_column("individual run", overflow="fold")
    for name, row in delta.pairs.items():
        table.add_row(
            name, f"{row.accuracy:.2f} %", f"{row.individual:.2f} %", f"{row.relative:.2f} %",
            row.run,
        )  # fmt: skip
    return table


def delta_line(delta: Delta) -> str:
    """Return the mean in words."""
    return f"delta: {delta.delta:.2f} %, the mean of the relative accuracies"
