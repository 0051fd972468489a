"""How long an export takes, phase by phase, and how pass time grows with the graph.

    python benchmarks/export_time.py [--net resnet50] [--counts 100,...,10000] [--run RUN]

1. A network with random weights, end to end in a process of its own: seconds per phase and
   peak memory.
2. Passes on synthetic adaptive graphs: processor seconds, and the slope of their logarithm
   over that of the node count: 1 is linear.
3. With --run: a run's export at other bits, each in a process of its own; from the second one
   on they find the traced graph.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print the tables that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="resnet50")
    parser.add_argument("--counts", default="100,300,1000,3000,10000")
    parser.add_argument("--repeat", type=int, default=3, help="passes: the fastest counts")
    parser.add_argument("--run", type=Path, help="run directory to export")
    parser.add_argument("--end-to-end", metavar="NET", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.end_to_end:
        json.dump(end_to_end(args.end_to_end), sys.stdout)
        return
    print(f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores\n")
    print(*export_table(args.net), sep="\n")
    print()
    counts = [int(count) for count in args.counts.split(",")]
    print(*pass_table(counts, args.repeat), sep="\n")
    if args.run:
        print()
        print(*run_table(args.run), sep="\n")


class Phases:
    """Seconds by phase, on the wall and of the processor."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        wall, worked = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = (time.perf_counter() - wall, time.process_time() - worked)


def end_to_end(name: str) -> dict[str, Any]:
    """Export network `name` in this fresh process."""
    phases = Phases()
    with phases.phase("import"):
        import onnx_ir as ir
        import torch
        from networks import Bits, images, random_network

        from passes.emit.onnx.onnx_qdq import emit_onnx_qdq
        from passes.pipelines import lower
        from qtool.core.selection import Selection
        from qtool.export.trace import trace
        from qtool.nn.control import calibrate
        from qtool.nn.prepare.prepare import prepare
    with phases.phase("build, BatchNorm statistics"):
        model = random_network(name, 224)
    with phases.phase("prepare"):
        prepared = prepare(model, Bits(8, 8, 8).spec(model))
    with phases.phase("calibrate, 1 image"):
        calibrate(prepared, torch.from_numpy(images(1, 224)))
    with phases.phase("trace"):
        adaptive = trace(prepared, (3, 224, 224))
    with phases.phase("lower"):
        dialect = lower(adaptive, Selection())
    with phases.phase("emit"):
        file = emit_onnx_qdq(dialect, {})
    with phases.phase("write"), tempfile.TemporaryDirectory() as folder:
        ir.save(file, Path(folder) / "model.onnx")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": phases.seconds, "peak_gib": peak}


def export_table(name: str) -> Iterator[str]:
    """Yield a Markdown table of seconds per phase."""
    command = [sys.executable, __file__, "--end-to-end", name]
    began = time.perf_counter()
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, check=True)
    total = time.perf_counter() - began
    result = json.loads(done.stdout)
    yield f"| {name}, 224 px | wall s | processor s |"
    yield "|---|---|---|"
    for phase, (wall, worked) in result["seconds"].items():
        yield f"| {phase} | {wall:.2f} | {worked:.2f} |"
    worked = sum(pair[1] for pair in result["seconds"].values())
    yield f"| whole process | {total:.2f} | {worked:.2f} |"
    yield ""
    yield f"Peak memory {result['peak_gib']:.2f} GiB."


def environment() -> dict[str, str]:
    """Return the environment with this checkout first."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path}


def pass_table(counts: list[int], repeat: int) -> Iterator[str]:
    """Yield a Markdown table of processor seconds by node count, and slopes."""
    rows = {count: pass_seconds(count, repeat) for count in counts}
    names = list(rows[counts[0]])
    yield "| nodes | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for count, row in rows.items():
        yield f"| {count:,} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |"
    cells = [slope(counts, [rows[count][name] for count in counts]) for name in names]
    yield "| slope, all | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"
    cells = [slope(counts[-3:], [rows[n][name] for n in counts[-3:]]) for name in names]
    yield "| slope, last three | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"


def pass_seconds(count: int, repeat: int) -> dict[str, float]:
    """Return the fewest processor seconds of each phase at `count` nodes."""
    runs = [one_pass_run(count) for _ in range(repeat)]
    return {name: min(run[name] for run in runs) for name in runs[0]}


def one_pass_run(count: int) -> dict[str, float]:
    """Return processor seconds of each phase at `count` nodes."""
    import onnx
    import onnx_ir as ir
    from synthetic import adaptive_chain

    from passes.emit.onnx.onnx_qdq import emit_onnx_qdq
    from passes.pipelines import import_qdq, lower
    from qtool.core.dialect import read_program
    from qtool.core.selection import Selection

    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = call()
        seconds[name] = time.process_time() - began
        return result

    adaptive = adaptive_chain(count)
    dialect = timed("lower", lambda: lower(adaptive, Selection()))
    file = timed("emit_onnx_qdq", lambda: emit_onnx_qdq(dialect, {}))
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(file))
    model = ir.from_proto(proto)
    back = timed("import_qdq", lambda: import_qdq(model))
    timed("read_program", lambda: read_program(back))
    return seconds


def slope(counts: list[int], seconds: list[float]) -> float:
    """Return the least-squares slope of log(seconds) over log(count)."""
    return float(np.polyfit(np.log(counts), np.log(seconds), 1)[0])


_RUN = """
import sys, time
from pathlib import Path
began, worked = time.perf_counter(), time.process_time()
from passes.emit.onnx.onnx_file import write_onnx
from qtool.export.adaptive import RunSource
from qtool.export.export import integer_model
dialect = integer_model(RunSource.open(Path(sys.argv[1])), sys.argv[2])
wrote = time.perf_counter()
write_onnx(dialect, Path(sys.argv[3]))
end = time.perf_counter()
print(wrote - began, end - wrote, time.process_time() - worked)
"""


def run_table(run: Path) -> Iterator[str]:
    """Yield a Markdown table of the first export of `run` and of those at other bits."""
    (run / "adaptive.onnx").unlink(missing_ok=True)
    yield "| export | to integers, wall s | writing, wall s | processor s |"
    yield "|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        for title, bits in (("first", "w4a8"), ("again", "w4a4"), ("again", "w4a3")):
            command = [sys.executable, "-c", _RUN, str(run), bits, f"{folder}/{bits}.onnx"]
            done = subprocess.run(
                command, env=environment(), stdout=subprocess.PIPE, text=True, check=True
            )
            cells = " | ".join(f"{float(cell):.2f}" for cell in done.stdout.split())
            yield f"| {title}, {bits} | {cells} |"


if __name__ == "__main__":
    main()
