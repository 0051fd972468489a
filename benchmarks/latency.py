"""Latency at batch 1 against the fastest int8 engines, all in one run.

    python benchmarks/latency.py [--nets resnet18,mobilenet_v2] [--size 224] [--threads 1,2]
                                 [--engines default] [--turns 25] [--json FILE]
                                 [--folder DIR] [--keep]

Every row is a process of its own; they take turns (`interleaved`), and a ratio is the median
over the rounds of this row's time to that of the other row in the same round. "ORT int8" is
ONNX Runtime on what its `quantize_static` makes of the float network (uint8 activations, int8
weights per channel, QDQ), "OpenVINO int8" is OpenVINO on that same file; "OpenVINO default"
has the float file, which it may compute in bfloat16. With one thread time is processor time of
the process, otherwise that on the wall. --engines takes rows, engines and groups (cases.py).
ONNX files are kept in --folder and used again; libraries are compiled anew without --keep.
"""

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import interleaved
from cases import Case, select, write_files
from interleaved import engine_command
from latency_rows import Row, markdown, table_rows

from qtool.core.errors import UserError
from qtool.models import model_factory
from qtool.models.macs import count_macs


def main() -> None:
    """Measure every network and print the tables."""
    args = arguments()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for net in args.nets.split(","):
            names = [case.file for case in args.cases.values()]
            files = write_files(net, args.size, folder, names, args.keep)
            for threads in args.threads:
                rows += measured(net, args.size, threads, args.turns, args.cases, files)
            print(*size_lines(files), sep="\n", flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """Return the command line; `cases` are the rows that it selects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default="resnet18,mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", default="1", help="one or several, such as 1,2")
    parser.add_argument("--engines", default="default", help="rows, engines, groups or all")
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="use libraries in --folder again")
    args = parser.parse_args()
    counts = args.threads.split(",")
    if args.turns < 2 or not all(count.isdecimal() and int(count) for count in counts):
        parser.error("--turns must be at least 2, --threads 1 or more, such as 1,2")
    args.threads = [int(count) for count in counts]
    try:
        args.cases = select(args.engines)
    except (ValueError, UserError) as error:
        parser.error(str(error))
    return args


def measured(
    net: str,
    size: int,
    threads: int,
    turns: int,
    cases: Mapping[str, Case],
    files: Mapping[str, Path],
) -> list[Row]:
    """Measure `cases` in one run, print their table and return it."""
    load = os.getloadavg()[0]
    commands = {
        name: engine_command(case.engine, files[case.file], threads, (3, size, size))
        for name, case in cases.items()
    }
    timings = interleaved.measure(commands, turns, threads)
    macs = sum(macs for _, macs in count_macs(model_factory(net)(), (3, size, size)))
    rows = list(table_rows(net, threads, macs, load, cases, files, timings))
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after\n")
    print(*markdown(rows), "", sep="\n", flush=True)
    return rows


def size_lines(files: Mapping[str, Path]) -> Iterator[str]:
    """Yield how large 4-bit files are, compared with 8-bit ones."""
    for name, path in files.items():
        tag, _, form = name.partition(".")
        eight = files.get(f"w8a8.{form}")
        if tag in ("mixed", "w4a4g4") and eight is not None:
            small, large = path.stat().st_size, eight.stat().st_size
            yield f"{name} / w8a8: {small:,} / {large:,} bytes = {small / large:.3f}"


if __name__ == "__main__":
    main()
