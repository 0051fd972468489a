"""Latency at batch 1 against ONNX Runtime's own quantizer, all engines in one run.

    python benchmarks/latency.py [--nets resnet18,mobilenet_v2] [--size 224] [--threads 1]
                                 [--turns 25] [--json FILE] [--folder DIR]

Every row is a process of its own; they take turns (`interleaved`), and a ratio is the median
over the rounds of this row's time to that of ORT's `quantize_static` (uint8 activations, int8
weights per channel, QDQ) of the same float network in the same round. With one thread time is
the thread's own processor time, otherwise that on the wall. The files are kept in --folder and
used again.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import interleaved
from interleaved import Timing
from networks import Bits, write_float, write_qtool, write_static

from qtool.models.macs import count_macs

BASELINE = "ORT quantize_static, QDQ"


@dataclass(frozen=True)
class Case:
    """A file of one network, named `file`, in the engine `engine` of engine.py."""

    engine: str
    file: str


# Rows of the table; a new engine is a line here and one in engine.py.
CASES = {
    BASELINE: Case("ort", "static.qdq"),
    "ORT quantize_static, operators": Case("ort", "static.qop"),
    "ORT float": Case("ort", "float"),
    "qtool W8A8, QDQ": Case("ort", "w8a8g8.qdq"),
    "qtool W8A8, operators": Case("ort", "w8a8g8.qop"),
    "qtool W4A4, all tensors 4 bits, QDQ": Case("ort", "w4a4g4.qdq"),
    "qtool W4A4, glue 8 bits, QDQ": Case("ort", "w4a4g8.qdq"),
    "qtool W8A4, all tensors 4 bits, QDQ": Case("ort", "w8a4g4.qdq"),
}
Writer = Callable[[str, int, Path], None]


def main() -> None:
    """Measure every network and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default="resnet18,mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for net in args.nets.split(","):
            files = write_files(net, args.size, folder)
            load = os.getloadavg()[0]
            commands = {
                name: [
                    sys.executable, str(Path(__file__).with_name("engine.py")), case.engine,
                    str(files[case.file]), str(args.threads), str(args.size),
                ]
                for name, case in CASES.items()
            }  # fmt: skip
            timings = interleaved.measure(commands, args.turns)
            found = list(table_rows(net, args.size, args.threads, files, timings))
            print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after\n")
            print(*markdown(found), sep="\n")
            print("\n" + size_line(files) + "\n", flush=True)
            rows += found
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def write_files(net: str, size: int, folder: Path) -> dict[str, Path]:
    """Write what is not in `folder` yet; return the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["float", "static.qdq", "static.qop"]
    names += [f"{tag}.{form}" for tag in QTOOL for form in ("qdq", "qop")]
    files = {name: folder / f"{net}-{size}.{name}.onnx" for name in names}
    with contextlib.redirect_stdout(io.StringIO()):
        if not files["float"].exists():
            write_float(net, size, files["float"])
        for form in ("qdq", "qop"):
            if not files[f"static.{form}"].exists():
                write_static(files["float"], size, form == "qop", files[f"static.{form}"])
        for tag, bits in QTOOL.items():
            forms = {form: files[f"{tag}.{form}"] for form in ("qdq", "qop")}
            if not all(path.exists() for path in forms.values()):
                write_qtool(net, size, bits, forms)
    return files


QTOOL = {
    "w8a8g8": Bits(8, 8, 8), "w4a4g4": Bits(4, 4, 4), "w4a4g8": Bits(4, 4, 8),
    "w8a4g4": Bits(8, 4, 4),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One engine on one network, times in ms; `spread` are the quartiles of the ratio."""

    net: str
    engine: str
    threads: int
    median_ms: float
    median_wall_ms: float
    ratio_to_ort_int8: float
    spread: tuple[float, float]
    ratio_to_openvino_int8: float | None
    gmac_per_s: float
    file_bytes: int


def table_rows(
    net: str, size: int, threads: int, files: dict[str, Path], timings: dict[str, Timing]
) -> Iterator[Row]:
    """Yield a row per engine."""
    macs = total_macs(net, size)
    for name, timing in timings.items():
        low, middle, high = timing.ratios(timings[BASELINE], threads)
        milliseconds = statistics.median(timing.turns(threads))
        yield Row(
            net, name, threads, milliseconds, statistics.median(timing.wall), middle,
            (low, high), None, macs / milliseconds / 1e6,
            files[CASES[name].file].stat().st_size,
        )  # fmt: skip


def total_macs(net: str, size: int) -> int:
    """Return the MACs of one image."""
    from torch import nn

    from qtool.models import model_factory

    def weight_of(module: nn.Module) -> object:
        return module.weight if isinstance(module, nn.Conv2d | nn.Linear) else None

    return sum(
        macs for _, macs in count_macs(model_factory(net)(), (3, size, size), weight_of)
    )


def markdown(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield "| net | engine | threads | ms | wall ms | ratio | quartiles | GMAC/s | MB |"
    yield "|---" * 9 + "|"
    for row in rows:
        low, high = row.spread
        yield (
            f"| {row.net} | {row.engine} | {row.threads} | {row.median_ms:.2f} | "
            f"{row.median_wall_ms:.2f} | {row.ratio_to_ort_int8:.3f} | "
            f"{low:.3f} to {high:.3f} | {row.gmac_per_s:.0f} | {row.file_bytes / 1e6:.2f} |"
        )


def size_line(files: dict[str, Path]) -> str:
    """Return how large W4 files are, compared with W8."""
    parts = []
    for form in ("qdq", "qop"):
        four, eight = (files[f"{tag}.{form}"].stat().st_size for tag in ("w4a4g4", "w8a8g8"))
        parts.append(f"{form} {four:,} / {eight:,} = {four / eight:.3f}")
    return "File size, W4 / W8: " + ", ".join(parts)


if __name__ == "__main__":
    main()
