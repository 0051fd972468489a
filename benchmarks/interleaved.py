"""Latencies of several models in one run: a process per model, all alive, taking turns.

Load on the machine drifts; models that take turns every few tenths of a second all feel it.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SLICE_S = 0.4


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one model, one median a turn."""

    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle turn."""
        return statistics.median(self.turns)

    def ratio_to(self, other: "Timing") -> tuple[float, float, float]:
        """Return the quartiles of this model's turns over the other's turns at that time."""
        ratios = [a / b for a, b in zip(self.turns, other.turns, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return low, middle, high


def measure(commands: Mapping[str, Sequence[str]], turns: int) -> dict[str, Timing]:
    """Time every model in turns.

    Args:
        commands: by name, the command line of a process that calls `serve`.
        turns: how often each gets its slice of time.
    """
    engines = {name: _start(command) for name, command in commands.items()}
    medians: dict[str, list[float]] = {name: [] for name in commands}
    try:
        for turn in range(turns + 1):
            for name, engine in engines.items():
                value = _ask(name, engine)
                if turn > 0:  # the first turn warms caches up
                    medians[name].append(value)
    finally:
        for engine in engines.values():
            engine.terminate()
            engine.wait()
    return {name: Timing(tuple(values)) for name, values in medians.items()}


def _start(command: Sequence[str]) -> "subprocess.Popen[str]":
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip


def _ask(name: str, engine: "subprocess.Popen[str]") -> float:
    if engine.stdin is None or engine.stdout is None:
        raise RuntimeError(f"{name}: no pipes")
    engine.stdin.write("\n")
    engine.stdin.flush()
    line = engine.stdout.readline()
    if not line:
        raise SystemExit(f"{name}: its process ended")
    return float(json.loads(line))


def serve(call: Callable[[], object]) -> None:
    """For every line on standard input write the median milliseconds of `call`."""
    call()
    for _ in sys.stdin:
        times: list[float] = []
        end = time.perf_counter() + SLICE_S
        while time.perf_counter() < end or len(times) < 3:
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        print(json.dumps(1e3 * statistics.median(times)), flush=True)
