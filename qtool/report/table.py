"""A check's report as a terminal table."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from qtool.cost import format_count


def check_table(report: dict[str, Any]) -> Table:
    """Return a two-column table of `report`."""
    table = Table(title=" + ".join(report["files"]), show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows(report):
        table.add_row(name, value)
    return table


def rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) lines."""
    for name, value in report["accuracy"].items():
        yield f"accuracy {name}", f"{value:.2f} % of {report['images']:,} images"
    for name, parity in report["parity"].items():
        yield f"parity {name}", _parity(parity)
    budget = report.get("budget_bops")
    share = (
        f", {100 * report['bops'] / budget:.1f} % of {format_count(budget)}" if budget else ""
    )
    yield "BOPs", f"{format_count(report['bops'])} from {report['macs']:,} MACs{share}"
    yield "weights", f"{report['weight_bytes']:,} bytes"
    for path, size in report["files"].items():
        yield "file", f"{path} {size:,} bytes{_ratio(report, path, size)}"
    floats = report["integer_coverage"]["float_ops"]
    yield "integer coverage", _coverage(floats, report["integer_coverage"]["runtime"])
    for name, latency in report["latency_ms"].items():
        yield f"latency {name}", f"{latency['median']:.3f} ms, {latency['threads']} thread"


def _parity(parity: dict[str, Any]) -> str:
    counts = f"{parity['mismatched']:,} of {parity['compared']:,}"
    text = f"{counts} integers differ from {parity['against']}"
    if parity["mismatched"]:
        first = parity["first_divergence"]
        text += f"; up to {parity['max_lsb']} LSB, first at {first['tensor']}"
    return text


def _ratio(report: dict[str, Any], path: str, size: int) -> str:
    whole = report.get("fp32_file_bytes")
    return f", {size / whole:.3f} x the FP32 file" if whole and path.endswith(".onnx") else ""


def _coverage(floats: dict[str, int], runtime: str) -> str:
    if not floats:
        return f"0 float operators between input Q and output DQ ({runtime})"
    listed = ", ".join(f"{count} {name}" for name, count in floats.items())
    return f"float operators in {runtime}: {listed}"
