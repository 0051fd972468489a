"""Latencies of several models in one run: a process per model, all alive, taking turns.

Load on the machine drifts; models that take turns several times a second all feel it alike.
Time is measured twice: on the wall, and as processor time of the model's whole process, which
leaves out the moments when the system ran something else. With one thread the two agree on an
idle machine; on a busy one only the latter says what the model costs. It counts threads of
an engine's own, too; but ONNX Runtime, OpenVINO and TVM, asked for one thread, compute in the
caller's, and what their other threads do meanwhile is below 0.1 % of it.
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

from qtool.core.relay.environment import require_relay

# The engine whose packages are in an environment of their own.
RELAY = "relay"
SLICE_S = 0.2
# Threads keep spinning behind their last task: ONNX Runtime's for 40 ms, TVM's for 140 ms.
PAUSE_S = 0.25


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one model, one median a turn: on the wall, and of the processor."""

    wall: tuple[float, ...]
    processor: tuple[float, ...]

    def turns(self, threads: int) -> tuple[float, ...]:
        """Return processor time, where one thread does the work."""
        return self.processor if threads == 1 else self.wall

    def ratios(self, other: "Timing", threads: int) -> tuple[float, float, float]:
        """Return the quartiles of this model's turns over the other's in the same round."""
        pairs = zip(self.turns(threads), other.turns(threads), strict=True)
        low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        return low, middle, high


def measure(
    commands: Mapping[str, Sequence[str]], turns: int, threads: int = 1
) -> dict[str, Timing]:
    """Time every model in turns.

    Args:
        commands: by name, the command line of a process that calls `serve`.
        turns: how often each gets its slice of time, at least 2.
        threads: of each; with several there is a pause until they are idle.
    """
    engines: dict[str, subprocess.Popen[str]] = {}
    medians: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    try:
        for name, command in commands.items():
            engines[name] = _start(command)
        for turn in range(turns + 1):
            for name, engine in engines.items():
                value = _ask(name, engine)
                if turn > 0:  # the first turn warms caches up
                    medians[name].append(value)
                time.sleep(PAUSE_S if threads > 1 else 0)
    finally:
        for engine in engines.values():
            engine.terminate()
            engine.wait()
    columns = {name: zip(*values, strict=True) for name, values in medians.items()}
    return {name: Timing(*map(tuple, pair)) for name, pair in columns.items()}


def engine_command(
    engine: str, model: object, threads: int, shape: Sequence[int], kind: str = "float32"
) -> list[str]:
    """Return the command line of `engine.py` on `model`, for images of `shape` (C, H, W)."""
    script, size = Path(__file__).with_name("engine.py"), "x".join(map(str, shape))
    python = require_relay() if engine == RELAY else sys.executable
    return [str(python), str(script), engine, str(model), str(threads), size, kind]


def _start(command: Sequence[str]) -> "subprocess.Popen[str]":
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip


def _ask(name: str, engine: "subprocess.Popen[str]") -> tuple[float, float]:
    if engine.stdin is None or engine.stdout is None:
        raise RuntimeError(f"{name}: no pipes")
    try:
        engine.stdin.write("\n")
        engine.stdin.flush()
        line = engine.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        raise SystemExit(f"{name}: its process ended")
    wall, processor = json.loads(line)
    return wall, processor


def serve(
    call: Callable[[], object], least: int = 3, after: Callable[[], object] = bool
) -> None:
    """For every line on standard input write the median milliseconds of `call`, twice.

    Args:
        call: what is timed; first called at the first line, while the other models wait.
        least: timed calls a line.
        after: called at the end of each slice, untimed.
    """
    for _ in sys.stdin:
        call()  # the other models had the caches
        wall: list[float] = []
        processor: list[float] = []
        end = time.perf_counter() + SLICE_S
        while time.perf_counter() < end or len(wall) < least:
            began, worked = time.perf_counter(), time.process_time()
            call()
            processor.append(time.process_time() - worked)
            wall.append(time.perf_counter() - began)
        after()
        print(json.dumps([1e3 * statistics.median(t) for t in (wall, processor)]), flush=True)
