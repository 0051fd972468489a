"""One network's training step: timed whenever a line comes in, or its memory counted once.

    python benchmarks/step_engine.py time|memory NET VARIANT BATCH THREADS ALLOCATOR

A process of `qat_step`. A step is forward, cross-entropy, backward and SGD with momentum on
one batch in channels-last layout. ``time`` is a process of `interleaved`; ``memory`` prints

    peak_bytes      the most bytes that torch's tensors had at one time in a step, beyond those
                    from before the network was built: weights, gradients, momenta, activations
                    and scratch tensors, exactly, as torch's profiler counts them.
    peak_rss_bytes  the same of the process as the system counts it (Linux: VmHWM after
                    clear_refs), which includes what other allocators hold, and what torch's
                    keeps; null elsewhere.
"""

import contextlib
import ctypes
import json
import sys
import tempfile
from pathlib import Path

import torch
from interleaved import serve
from step_networks import Variant, build
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function

from qtool.models import model_entry
from qtool.native.allocator import keep_freed_memory
from qtool.quantizers.engines import ENGINES, engine

_MARK = "measured step"
_WARM_UP = 4


class Trainer:
    """A network in training; built at its first step, so that others wait for none of it."""

    def __init__(self, net: str, variant: Variant, batch: int) -> None:
        self.net, self.variant = net, variant
        torch.manual_seed(0)
        x = torch.rand(batch, *model_entry(net).input_shape)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (batch,))
        self.model: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def step(self) -> None:
        """Do one step."""
        if self.model is None or self.optimizer is None:
            self.model = build(self.net, self.variant)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        loss = functional.cross_entropy(self.model(self.x), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def forget(self) -> None:
        """Drop the network and all that belongs to it."""
        self.model = self.optimizer = None
        trim()


def trim() -> None:
    """Give free memory back to the system, where the C library can: others need it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def tensor_peak(trainer: Trainer) -> int:
    """Return the largest sum of tensors' bytes in the second step of a new network."""
    trainer.forget()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer.step()
        with record_function(_MARK):  # momenta exist from here on
            trainer.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return largest_total(events)


def largest_total(events: list[dict[str, object]]) -> int:
    """Return the highest "Total Allocated" of the CPU since the marked step began."""
    began = min(float(e["ts"]) for e in events if e.get("name") == _MARK and "ts" in e)
    totals = [
        e["args"]["Total Allocated"]
        for e in events
        if e.get("name") == "[memory]" and float(e["ts"]) >= began
    ]
    return int(max(totals))


def process_peak(trainer: Trainer) -> int | None:
    """Return by how much two steps of a new network raise the process' resident memory."""
    trainer.forget()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        before = _status("VmRSS")
        trainer.step()
        trainer.step()
        return _status("VmHWM") - before
    except OSError:
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


def time_steps(trainer: Trainer) -> None:
    """Answer `interleaved` until it ends this process."""

    def call() -> None:
        # What compiles does so in its first calls, TorchScript also in its second.
        for _ in range(_WARM_UP if trainer.model is None else 1):
            trainer.step()

    serve(call, least=1, after=trim)


def main() -> None:
    """Do what the command line says."""
    action, net, variant, batch, threads, allocator = sys.argv[1:]
    torch.set_num_threads(int(threads))
    if allocator == "keep":
        keep_freed_memory()
    chosen = Variant.parse(variant)
    trainer = Trainer(net, chosen, int(batch))
    with engine(chosen.mode if chosen.mode in ENGINES else "auto"):
        if action == "time":
            time_steps(trainer)
        else:
            trainer.step()  # whatever is compiled or cached is by now
            peaks = {
                "peak_bytes": tensor_peak(trainer),
                "peak_rss_bytes": process_peak(trainer),
            }
            print(json.dumps(peaks))


if __name__ == "__main__":
    main()
