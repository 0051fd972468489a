"""Time and memory of a training step: float, qtool's quantizers, Brevitas, all in one run.

    python benchmarks/qat_step.py [--nets preact_resnet20_narrow,mobilenet_v2_cifar]
                                  [--quantizers lsq,pact,dorefa,sat]
                                  [--modes eager,native,compiled] [--glue with,without]
                                  [--brevitas eager,jit] [--batch 128] [--threads 2]
                                  [--turns 7] [--allocator keep] [--json FILE]

A step is forward, cross-entropy, backward and SGD with momentum on one batch of random images,
channels last, at W4A4 with an 8-bit first and last layer. Every row is a process of its own;
they take turns (`interleaved`), and a ratio is the median over the rounds of this row's time
to that of float in the same round. With one thread time is processor time of the process,
otherwise that on the wall. Memory is that of another process each (`step_engine`).
--glue: also with grids on every tensor between layers, as an integer network has; eager rows
are slow and are without them, unless only "with" is asked for.
--brevitas: "eager", or "jit" for its TorchScript and C++ functions; empty for none.
--allocator: "keep": in all rows alike, float too, the C library keeps freed memory, as
training with qtool does (`qtool.native.allocator`); "system": as it is.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import interleaved
from step_networks import Variant
from step_rows import Peaks, Row, markdown, table_rows

from qtool.core.errors import UserError
from qtool.models import model_entry

_PACKAGES = ("torch", "brevitas", "numpy")
# Inductor would start a process for every core in each of the processes measured.
_ENVIRONMENT = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}


def main() -> None:
    """Measure every network and print the tables."""
    args = arguments()
    os.environ.update(_ENVIRONMENT)
    chosen, rows = variants(args), list[Row]()
    for net in args.nets:
        rows += measured(net, chosen, args)
        print(*markdown([row for row in rows if row.net == net]), "", sep="\n", flush=True)
    if args.json:
        result = {
            "batch": args.batch, "threads": args.threads, "turns": args.turns,
            "allocator": args.allocator,
            "cores": os.cpu_count(), "versions": {name: _version(name) for name in _PACKAGES},
            "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line; lists are split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("--nets", "preact_resnet20_narrow,mobilenet_v2_cifar"),
        ("--quantizers", "lsq,pact,dorefa,sat"),
        ("--modes", "eager,native,compiled"),
        ("--glue", "with,without"),
        ("--brevitas", "eager,jit"),
    ):
        parser.add_argument(name, default=default)
    parser.add_argument("--allocator", choices=("keep", "system"), default="keep")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    for name in ("nets", "quantizers", "modes", "glue", "brevitas"):
        setattr(args, name, [part for part in getattr(args, name).split(",") if part])
    if args.turns < 2 or args.threads < 1 or args.batch < 2:
        parser.error("--turns and --batch must be at least 2, --threads 1")
    if unknown := set(args.glue) - {"with", "without"}:
        parser.error(f"--glue {', '.join(unknown)}: expected with, without or both")
    try:
        for net in args.nets:
            model_entry(net)
    except UserError as error:
        parser.error(str(error))
    return args


def variants(args: argparse.Namespace) -> list[Variant]:
    """Return what is measured; float first."""
    return [
        Variant("float"),
        *(
            Variant(quantizer, mode, glue == "with")
            for quantizer in args.quantizers
            for mode in args.modes
            for glue in args.glue
            if (mode, glue) != ("eager", "with") or "without" not in args.glue
        ),
        *(Variant("brevitas", mode) for mode in args.brevitas),
    ]


def measured(net: str, chosen: list[Variant], args: argparse.Namespace) -> Iterator[Row]:
    """Return the rows of one network: memory first, one after the other, then time."""
    load = os.getloadavg()[0]
    found = {v: _peaks(_command("memory", net, v, args)) for v in chosen}
    peaks = {v: peak for v, peak in found.items() if peak is not None}
    commands = {v.name: _command("time", net, v, args) for v in peaks}
    timings = interleaved.measure(commands, args.turns, args.threads)
    named = {v: timings[v.name] for v in peaks}
    return table_rows(net, args.batch, args.threads, load, named, peaks)


def _command(action: str, net: str, variant: Variant, args: argparse.Namespace) -> list[str]:
    script = Path(__file__).with_name("step_engine.py")
    settings = (str(args.batch), str(args.threads), args.allocator)
    return [sys.executable, str(script), action, net, variant.name, *settings]


def _peaks(command: list[str]) -> Peaks | None:
    """Return the memory that `command` counts; None, and say so, where it fails."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    if done.returncode != 0:
        print(f"left out: {' '.join(command[3:])}: {done.stderr.strip().splitlines()[-1]}")
        return None
    return Peaks(**json.loads(done.stdout.splitlines()[-1]))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


if __name__ == "__main__":
    main()
