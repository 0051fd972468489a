"""A check's record as a terminal table."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from qtool.checking.record import CheckRecord, Diverging, Fallback, Glue, Module, ParityRecord
from qtool.core.cost import format_count
from qtool.witness.record import WitnessRecord
from qtool.witness.verdict import sentence

SHOWN = 5  # diverging tensors in a table; the JSON report has all


def check_table(record: CheckRecord) -> Table:
    """Return a two-column table of `record`."""
    table = Table(title=" + ".join(record.files), show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows(record):
        table.add_row(name, value)
    return table


def rows(record: CheckRecord) -> Iterator[tuple[str, str]]:
    """Yield (name, value) lines."""
    if not record.accuracy:
        yield "inputs", f"{record.images} images; data set {record.dataset}"
    for name, value in record.accuracy.items():
        yield f"accuracy {name}", f"{value:.2f} % of {record.images:,} images"
    if record.glue is not None:
        yield from _glue(record.glue)
    for name, parity in record.parity.items():
        yield f"parity {name}", _parity(parity)
        if parity.mismatched:
            yield f"  {name} differs", _diverging(parity.diverging)
            yield f"  {name} logits", _logits(parity)
    if record.original is not None:
        yield from _original(record.original)
    yield from _cost(record)
    yield "ISA", record.isa.summary
    for name, floats in record.float_ops.items():
        if name == record.integer_coverage.runtime or floats:
            yield "integer coverage", _coverage(floats, name)
    if record.islands:
        yield "float islands", _islands(record)
    for name, device in (record.devices or {}).items():
        yield f"{name} device", device
    for name, module in record.modules.items():
        yield from _module(name, module)
    for name, latency in record.latency_ms.items():
        yield f"latency {name}", f"{latency.median:.3f} ms, {latency.threads} thread"
    for text in record.slow or ():
        yield "slow", text


def _original(witness: WitnessRecord) -> Iterator[tuple[str, str]]:
    """Yield how far the files are from where they come from, and what fell out."""
    yield "original", sentence(witness)
    if witness.fallen:
        lines = list(witness.fallen[:SHOWN])
        if len(witness.fallen) > SHOWN:
            lines.append(f"and {len(witness.fallen) - SHOWN} more tensors")
        yield "  original differs", "first at " + "\n".join(lines)


def _cost(record: CheckRecord) -> Iterator[tuple[str, str]]:
    """Yield BOPs and bytes; the first file's also as a share of the float file's."""
    share = ""
    if budget := record.budget_bops:
        share = f", {100 * record.bops / budget:.1f} % of {format_count(budget)}"
    yield "BOPs", f"{format_count(record.bops)} from {record.macs:,} MACs{share}"
    if record.zero_shot is not None:
        yield "zero-shot", record.zero_shot
    yield "weights", f"{record.weight_bytes:,} bytes"
    for index, (path, size) in enumerate(record.files.items()):
        whole = 0 if index else record.fp32_file_bytes
        ratio = f", {size / whole:.3f} x the FP32 file" if whole else ""
        yield "file", f"{path} {size:,} bytes{ratio}"


def _module(runtime: str, module: Module) -> Iterator[tuple[str, str]]:
    """Yield what a module is made for and of."""
    target = module.target
    yield f"{runtime} code", f"{target.mcpu}, {target.isa} kernels"
    peak, pair = module.peak_activation_bytes, module.largest_pair_bytes
    ratio = f", {peak / pair:.2f} x the largest pair of live tensors" if pair else ""
    yield f"{runtime} activations", f"{peak:,} bytes at most{ratio}"
    yield f"{runtime} fallbacks", _fallbacks(module.fallbacks)
    packed = module.packed_weights
    text = f"packed in memory: {', '.join(packed)}" if packed else "one byte each in memory"
    yield f"{runtime} weights", text


def _fallbacks(fallbacks: Sequence[Fallback]) -> str:
    """Return the operators without an integer kernel of qtool, and why."""
    if not fallbacks:
        return "none: every operator has an integer kernel"
    return "\n".join(f"{f.layer} ({f.operator}): {f.reason}" for f in fallbacks)


def _glue(glue: Glue) -> Iterator[tuple[str, str]]:
    """Yield what each choice of glue grids loses against glue in floating point."""
    first, *choices = glue.choices
    for row in choices:
        lost = first.accuracy - row.accuracy
        yield (
            f"glue {row.glue}",
            f"{row.accuracy:.2f} % of {row.images:,} images at {glue.bits} in torch, "
            f"{lost:.2f} lost to the grids",
        )


def _parity(parity: ParityRecord) -> str:
    counts = f"{parity.mismatched:,} of {parity.compared:,}"
    text = f"{counts} integers differ from {parity.against}"
    if parity.mismatched:
        text += f"; up to {parity.max_lsb} LSB"
    if parity.reason:
        text += f"; {parity.reason}"
    return text if parity.required else f"{text}; 0 is not required"


def _diverging(tensors: Sequence[Diverging]) -> str:
    """Return a line per diverging tensor, in execution order: the first ones, then a count."""
    lines = [
        f"{_label(tensor)}: {tensor.mismatched:,} of {tensor.compared:,} "
        f"({100 * tensor.mismatched / tensor.compared:.2g} %), "
        f"up to {tensor.max_lsb} LSB"
        for tensor in tensors[:SHOWN]
    ]
    lines[0] = f"first at {lines[0]}"
    if len(tensors) > SHOWN:
        lines.append(f"and {len(tensors) - SHOWN} more tensors")
    return "\n".join(lines)


def _label(tensor: Diverging) -> str:
    return f"{tensor.tensor} ({tensor.operator})" if tensor.operator else tensor.tensor


def _logits(parity: ParityRecord) -> str:
    share = 100 * parity.logits.mismatched / parity.logits.compared
    return f"{share:.2f} % differ; same class for {parity.same_class:.2f} % of the images"


def _islands(record: CheckRecord) -> str:
    """Return the islands, and whether anything else runs in floating point."""
    islands, coverage = record.islands, record.integer_coverage
    count = f"{len(islands)} float island{'s' if len(islands) > 1 else ''}"
    lines = [f"{count}: {', '.join('+'.join(i.operators) for i in islands)}"]
    if coverage.island_ops is not None:
        outside = Counter(coverage.float_ops) - Counter(coverage.island_ops)
        others = ", ".join(f"{n} {name}" for name, n in outside.items())
        lines.append(f"float operators outside the islands: {others or 'none'}")
    for island in islands:
        counts = f"{island.mismatched:,} of {island.compared:,} integers"
        text = f"{counts} differ from numpy's float32, up to {island.max_lsb} LSB"
        lines.append(f"{island.name}: {text if island.compared else 'not compared'}")
    return "\n".join(lines)


def _coverage(floats: Mapping[str, int], runtime: str) -> str:
    if not floats:
        return f"0 float operators between input Q and output DQ ({runtime})"
    listed = ", ".join(f"{count} {name}" for name, count in floats.items())
    return f"float operators in {runtime}: {listed}"
