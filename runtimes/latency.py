"""Latency of one model in one runtime, alone in its process: ``python -m runtimes.latency``.

A process of its own, because engines keep thread pools and caches that slow each other down.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.base import Inputs, Runtime

WARMUP_S = 0.2
MEASURE_S = 1.0


def measure(
    path: Path, runtime: str, shape: tuple[int, ...], threads: int = 1, kind: str = "float32"
) -> dict[str, Any]:
    """Return {"median", "quartiles", "threads", "runs"} for batch 1, milliseconds.

    Args:
        path: model.so for "tvm", model.onnx for the others.
        runtime: name of the runtime.
        shape: (C, H, W) of an image.
        threads: threads the runtime may use.
        kind: what the model takes, "float32" or "uint8".
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
    ]
    variables = os.environ | {"TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"latency of {path} in {runtime}: {done.stderr.strip()[-300:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _open(path: Path, runtime: str, threads: int) -> Runtime:
    if runtime == "tvm":
        from runtimes.tvm import TvmRuntime

        return TvmRuntime(path)
    if runtime == "openvino":
        from runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime(path, threads=threads)
    from runtimes.ort import OrtRuntime

    return OrtRuntime(path, threads=threads)


def _times(model: Runtime, x: Inputs) -> list[float]:
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
    parser.add_argument("runtime", choices=["ort", "tvm", "openvino"])
    parser.add_argument("shape")
    parser.add_argument("threads", type=int)
    parser.add_argument("kind", choices=["float32", "uint8"])
    args = parser.parse_args()
    shape = [int(n) for n in args.shape.split("x")]
    pixels = np.random.default_rng(0).integers(0, 256, (1, *shape)).astype(np.uint8)
    x = pixels if args.kind == "uint8" else pixels / np.float32(255)
    times = _times(_open(args.path, args.runtime, args.threads), x)
    low, median, high = (1e3 * float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    result = {
        "median": median, "quartiles": [low, high], "threads": args.threads,
        "runs": len(times),
    }  # fmt: skip
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
