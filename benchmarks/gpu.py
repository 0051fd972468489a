"""Latency on a GPU: the Triton runtime against PyTorch in fp16, on the same network.

    python benchmarks/gpu.py [--nets resnet18,mobilenet_v2] [--size 224] [--batches 1,32,256]
                             [--turns 200] [--json FILE]

Weights are random. Before anything is timed the integers of 2 images are compared with the
reference, tensor by tensor. Both engines replay a CUDA graph on a batch that is on the GPU
already, PyTorch's with BatchNorm folded and in channels-last order, and take turns; times are
of CUDA events, the median.
"Share" is of the int8 operations a second that the card reaches in one large matrix product
(`torch._int_mm`). Needs a CUDA GPU, and TRITON_INTERPRET not set.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from networks import Bits, images, random_network, write_qtool
from torch.fx.experimental.optimization import fuse

from qtool.core.dialect import Program
from qtool.core.errors import UserError
from qtool.export.read import read_onnx
from runtimes.compare import Parity
from runtimes.reference import ReferenceRuntime
from runtimes.triton.device import INTERPRET, Device, open_device

Call = Callable[[], object]
WARM = 20
# Edge of the product that the card's int8 rate is measured on.
PEAK_SIZE = 8192


@dataclass(frozen=True)
class Row:
    """Milliseconds of a batch, and what they are of the card's int8 rate.

    Args:
        net: network.
        batch: images.
        triton: of the Triton runtime.
        fp16: of PyTorch.
        share: of the peak that the integers reach.
    """

    net: str
    batch: int
    triton: float
    fp16: float
    share: float


def main() -> None:
    """Measure every network and print a table."""
    args = arguments()
    try:
        device = require_gpu()
    except UserError as error:
        raise SystemExit(f"benchmarks/gpu.py: {error}") from None
    peak = int8_rate(args.turns)
    print(f"{device.text}; PyTorch {torch.__version__}; int8 {peak / 1e12:.0f} TOPS measured")
    rows: list[Row] = []
    print("| network | batch | Triton, ms | PyTorch fp16, ms | fp16 / Triton | share |")
    print("|---|---|---|---|---|---|")
    for net in args.nets.split(","):
        program = program_of(net, args.size)
        print(f"{net}: {differing(program, args.size)}", flush=True)
        for batch in map(int, args.batches.split(",")):
            rows.append(measured(net, program, args.size, batch, device, peak, args.turns))
            print(line(rows[-1]), flush=True)
    if args.json:
        content = {"device": device.text, "peak": peak, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default="resnet18,mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", default="1,32,256")
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def require_gpu() -> Device:
    """Return this machine's GPU.

    Raises:
        UserError: there is none, no Triton, or kernels are interpreted.
    """
    device = open_device()
    if device.interpreted:
        raise UserError(f"times of interpreted kernels say nothing: unset {INTERPRET}")
    return device


def program_of(net: str, size: int) -> Program:
    """Return network `net` at 8 bits, as its file has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_qtool(net, size, Bits(8, 8, 8), {"qdq": path})
        return read_onnx(path)


def differing(program: Program, size: int) -> str:
    """Compare every integer of 2 images with the reference."""
    from runtimes.triton.runtime import TritonRuntime

    x, parity = images(2, size), Parity()
    found = TritonRuntime(program).intermediates(x)
    parity.add_all(ReferenceRuntime(program).intermediates(x), found)
    return f"{parity.mismatched:,} of {parity.compared:,} integers differ from the reference"


def measured(
    net: str, program: Program, size: int, batch: int, device: Device, peak: float, turns: int
) -> Row:
    """Return a row; `peak` in operations a second."""
    from runtimes.triton.graph import Session

    session = Session(program, batch, device, {})
    session.run(np.resize(images(8, size), (batch, 3, size, size)))
    ours, theirs = medians([session.launch, half(net, size, batch)], turns)
    operations = 2 * batch * sum(cost.macs for cost in program.layer_costs())
    return Row(net, batch, ours, theirs, operations / (1e-3 * ours) / peak)


def half(net: str, size: int, batch: int) -> Call:
    """Return PyTorch's network in fp16, BatchNorm folded, recorded as a CUDA graph."""
    model = fuse(random_network(net, size)).half().cuda()
    model = model.to(memory_format=torch.channels_last)
    x = torch.rand(batch, 3, size, size, device="cuda").half()
    x = x.contiguous(memory_format=torch.channels_last)
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.inference_mode():
        with torch.cuda.stream(aside):  # what cuDNN chooses is chosen before it is recorded
            for _ in range(WARM):
                model(x)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            result = model(x)

    def call() -> object:
        graph.replay()
        return result, model, x  # a graph does not keep what it works on

    return call


def int8_rate(turns: int) -> float:
    """Return the int8 operations a second of one large matrix product."""
    a, b = (
        torch.randint(-128, 128, (PEAK_SIZE, PEAK_SIZE), dtype=torch.int8, device="cuda")
        for _ in range(2)
    )
    (milliseconds,) = medians([lambda: torch._int_mm(a, b.t())], turns)
    return float(2 * PEAK_SIZE**3 / (1e-3 * milliseconds))


def medians(calls: Sequence[Call], turns: int) -> list[float]:
    """Return the median milliseconds of each call; they take turns."""
    for call in [*calls] * WARM:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(turns):
        for call, found in zip(calls, times, strict=True):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            call()
            ended.record()
            ended.synchronize()
            found.append(began.elapsed_time(ended))
    return [statistics.median(found) for found in times]


def line(row: Row) -> str:
    """Return `row` in Markdown."""
    return (
        f"| {row.net} | {row.batch} | {row.triton:.3f} | {row.fp16:.3f} | "
        f"{row.fp16 / row.triton:.2f} x | {100 * row.share:.1f} % |"
    )


if __name__ == "__main__":
    main()
