"""Latency of one model in one runtime, alone in its process: ``python -m runtimes.latency``.

A process of its own, because engines keep thread pools and caches that slow each other down.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtimes.base import Artifact, Inputs, Runtime, TimesItself
from runtimes.registry import TIMED, runtime_entry

WARMUP_S = 0.2
MEASURE_S = 1.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference.

    Args:
        median: of all runs.
        quartiles: the first and the third.
        threads: that the runtime could use.
        runs: how many were timed.
    """

    median: float
    quartiles: tuple[float, float]
    threads: int
    runs: int


def measure(
    path: Path, runtime: str, shape: tuple[int, ...], threads: int = 1, kind: str = "float32",
    pair: str | None = None,
) -> Latency:  # fmt: skip
    """Return the latency of batch 1.

    Args:
        path: a file that the runtime executes.
        runtime: one of `runtimes.registry.TIMED`.
        shape: (C, H, W) of an image.
        threads: threads the runtime may use.
        kind: what the model takes, "float32" or "uint8".
        pair: of bit-widths, where the file holds several.
    """
    size = "x".join(map(str, shape))
    command = [
        sys.executable,
        "-m",
        "runtimes.latency",
        str(path),
        runtime,
        size,
        str(threads),
        kind,
        *([] if pair is None else ["--pair", pair]),
    ]
    variables = os.environ | {"TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"latency of {path} in {runtime}: {done.stderr.strip()[-300:]}")
    values = json.loads(done.stdout)
    return Latency(**values | {"quartiles": tuple(values["quartiles"])})


def _times(model: Runtime, x: Inputs) -> list[float]:
    if isinstance(model, TimesItself):
        return model.times(x, WARMUP_S, MEASURE_S)
    end = time.perf_counter() + WARMUP_S
    while time.perf_counter() < end:
        model.run(x)
    times: list[float] = []
    end = time.perf_counter() + MEASURE_S
    while time.perf_counter() < end:
        began = time.perf_counter()
        model.run(x)
        times.append(time.perf_counter() - began)
    return times


def main() -> None:
    """Measure what the arguments name and write JSON to standard output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("runtime", choices=TIMED)
    parser.add_argument("shape")
    parser.add_argument("threads", type=int)
    parser.add_argument("kind", choices=["float32", "uint8"])
    parser.add_argument("--pair")
    args = parser.parse_args()
    shape = [int(n) for n in args.shape.split("x")]
    pixels = np.random.default_rng(0).integers(0, 256, (1, *shape)).astype(np.uint8)
    x = pixels if args.kind == "uint8" else pixels / np.float32(255)
    entry = runtime_entry(args.runtime)
    times = _times(entry.open(Artifact(args.path, pair=args.pair), args.threads), x)
    low, median, high = (1e3 * float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    result = Latency(median, (low, high), args.threads, len(times))
    json.dump(dataclasses.asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
