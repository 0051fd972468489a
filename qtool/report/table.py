"""A check's report as a terminal table."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from qtool.core.cost import format_count

SHOWN = 5  # diverging tensors in a table; the JSON report has all


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
    if not report["accuracy"]:
        yield "inputs", f"{report['images']} images; data set {report['dataset']}"
    for name, value in report["accuracy"].items():
        yield f"accuracy {name}", f"{value:.2f} % of {report['images']:,} images"
    if "glue" in report:
        yield from _glue(report["glue"])
    for name, parity in report["parity"].items():
        yield f"parity {name}", _parity(parity)
        if parity["mismatched"]:
            yield f"  {name} differs", _diverging(parity["diverging"])
            yield f"  {name} logits", _logits(parity)
    budget = report.get("budget_bops")
    share = (
        f", {100 * report['bops'] / budget:.1f} % of {format_count(budget)}" if budget else ""
    )
    yield "BOPs", f"{format_count(report['bops'])} from {report['macs']:,} MACs{share}"
    yield "weights", f"{report['weight_bytes']:,} bytes"
    for path, size in report["files"].items():
        yield "file", f"{path} {size:,} bytes{_ratio(report, path, size)}"
    yield "ISA", report["isa"]["summary"]
    measured = report["integer_coverage"]["runtime"]
    for name, floats in report["float_ops"].items():
        if name == measured or floats:
            yield "integer coverage", _coverage(floats, name)
    if report.get("islands"):
        yield "float islands", _islands(report)
    if "tvm" in report:
        yield from _module(report["tvm"])
    for name, latency in report["latency_ms"].items():
        yield f"latency {name}", f"{latency['median']:.3f} ms, {latency['threads']} thread"


def _module(module: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a TVM module is made for and of."""
    target = module["target"]
    yield "tvm code", f"{target['mcpu']}, {target['isa']} kernels"
    peak, pair = module["peak_activation_bytes"], module["largest_pair_bytes"]
    ratio = f", {peak / pair:.2f} x the largest pair of live tensors" if pair else ""
    yield "tvm activations", f"{peak:,} bytes at most{ratio}"
    yield "tvm fallbacks", _fallbacks(module["fallbacks"])
    packed = module["packed_weights"]
    text = f"packed in memory: {', '.join(packed)}" if packed else "one byte each in memory"
    yield "tvm weights", text


def _fallbacks(fallbacks: list[dict[str, Any]]) -> str:
    """Return the operators without an integer kernel of qtool, and why."""
    if not fallbacks:
        return "none: every operator has an integer kernel"
    return "\n".join(f"{f['layer']} ({f['operator']}): {f['reason']}" for f in fallbacks)


def _glue(glue: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what each choice of glue grids loses against glue in floating point."""
    first, *choices = glue["choices"]
    for row in choices:
        lost = first["accuracy"] - row["accuracy"]
        yield (
            f"glue {row['glue']}",
            f"{row['accuracy']:.2f} % of {row['images']:,} images at {glue['bits']} in torch, "
            f"{lost:.2f} lost to the grids",
        )


def _parity(parity: dict[str, Any]) -> str:
    counts = f"{parity['mismatched']:,} of {parity['compared']:,}"
    text = f"{counts} integers differ from {parity['against']}"
    if parity["mismatched"]:
        text += f"; up to {parity['max_lsb']} LSB"
    if parity["reason"]:
        text += f"; {parity['reason']}"
    return text if parity["required"] else f"{text}; 0 is not required"


def _diverging(tensors: list[dict[str, Any]]) -> str:
    """Return a line per diverging tensor, in execution order: the first ones, then a count."""
    lines = [
        f"{_label(tensor)}: {tensor['mismatched']:,} of {tensor['compared']:,} "
        f"({100 * tensor['mismatched'] / tensor['compared']:.2g} %), "
        f"up to {tensor['max_lsb']} LSB"
        for tensor in tensors[:SHOWN]
    ]
    lines[0] = f"first at {lines[0]}"
    if len(tensors) > SHOWN:
        lines.append(f"and {len(tensors) - SHOWN} more tensors")
    return "\n".join(lines)


def _label(tensor: dict[str, Any]) -> str:
    operator = tensor.get("operator")
    return f"{tensor['tensor']} ({operator})" if operator else str(tensor["tensor"])


def _logits(parity: dict[str, Any]) -> str:
    logits = parity["logits"]
    share = 100 * logits["mismatched"] / logits["compared"]
    return f"{share:.2f} % differ; same class for {parity['same_class']:.2f} % of the images"


def _ratio(report: dict[str, Any], path: str, size: int) -> str:
    whole = report.get("fp32_file_bytes")
    return f", {size / whole:.3f} x the FP32 file" if whole and path.endswith(".onnx") else ""


def _islands(report: dict[str, Any]) -> str:
    """Return the islands, and whether anything else runs in floating point."""
    islands, coverage = report["islands"], report["integer_coverage"]
    count = f"{len(islands)} float island{'s' if len(islands) > 1 else ''}"
    lines = [f"{count}: {', '.join('+'.join(i['operators']) for i in islands)}"]
    if "island_ops" in coverage:
        outside = Counter(coverage["float_ops"]) - Counter(coverage["island_ops"])
        others = ", ".join(f"{n} {name}" for name, n in outside.items())
        lines.append(f"float operators outside the islands: {others or 'none'}")
    for island in islands:
        counts = f"{island['mismatched']:,} of {island['compared']:,} integers"
        text = f"{counts} differ from numpy's float32, up to {island['max_lsb']} LSB"
        lines.append(f"{island['name']}: {text if island['compared'] else 'not compared'}")
    return "\n".join(lines)


def _coverage(floats: dict[str, int], runtime: str) -> str:
    if not floats:
        return f"0 float operators between input Q and output DQ ({runtime})"
    listed = ", ".join(f"{count} {name}" for name, count in floats.items())
    return f"float operators in {runtime}: {listed}"
