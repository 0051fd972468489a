"""Time of a training step of methods that train several bit-widths at once, in float steps.

    python benchmarks/adaptive_step.py [--nets preact_resnet20_narrow,mobilenet_v2_small]
                                       [--methods mebqat,mebqat_float,coquant] [--batch 128]
                                       [--threads 1] [--turns 7] [--json FILE]

A float step is one pass over a batch of random images and one update; MEBQAT's passes M = 4
times, at the pairs of bits of its tasks (`mebqat`: drawn anew each step; `mebqat_float`: all
float, which is what the method costs without any quantizer), and updates once. A step of joint
training (`coquant`, or another of `qtool.settings.joint_methods`) passes once at each of the
precisions 8, 6, 4 and 2, and updates once: teachers and swapped blocks are in it. Every row is
a process of its own; they take turns (`interleaved`). A ratio is the median over the rounds of
a row's time, divided by its passes, to that of a float step in the same round; with one thread
time is the processor's.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import interleaved
import torch
from torch import Tensor, nn

from qtool.core.cost import FLOAT_BITS
from qtool.frontends.coquant.blocks import find_blocks
from qtool.frontends.coquant.frontend import swapping, with_norms
from qtool.frontends.coquant.step import joint_step
from qtool.frontends.coquant.swap import Swapped
from qtool.frontends.mebqat.step import pairs_step
from qtool.frontends.mebqat.tasks import TaskBatches, Tasked, forced_tasks
from qtool.models import model_entry
from qtool.native.allocator import keep_freed_memory
from qtool.networks import build_network, quant_spec
from qtool.nn.control import calibrate
from qtool.nn.prepare.prepare import prepare
from qtool.settings.base import TrainConfig
from qtool.settings.coquant import CoquantConfig
from qtool.settings.joint_methods import METHODS
from qtool.settings.mebqat import MebqatConfig
from qtool.settings.override import override
from qtool.training.averages import Averages
from qtool.training.ingredients import plain_phase

TASKS = 4
PRECISIONS = (8, 6, 4, 2)
PASSES = {
    "float": 1, "mebqat": TASKS, "mebqat_float": TASKS,
    **dict.fromkeys(METHODS, len(PRECISIONS)),
}  # fmt: skip
_CLASSES = 10
# Of an epoch: how far swaps change in the measured steps.
_STEPS = 1000


@dataclass(frozen=True)
class Row:
    """One method on one network.

    Args:
        method, net, passes, batch, threads: what.
        ms_per_step: median.
        ratio_to_float_per_pass, spread: median and quartiles over the rounds.
    """

    method: str
    net: str
    passes: int
    batch: int
    threads: int
    ms_per_step: float
    ratio_to_float_per_pass: float
    spread: tuple[float, float]


def main() -> None:
    """Measure, or be a process that is measured."""
    if sys.argv[1:2] == ["engine"]:
        method, net, batch, threads = sys.argv[2:]
        torch.set_num_threads(int(threads))
        keep_freed_memory()
        interleaved.serve(Steps(method, net, int(batch)), least=1)
        return
    args = arguments()
    rows = [row for net in args.nets for row in measured(net, args)]
    for row in rows:
        low, high = row.spread
        print(
            f"{row.net} {row.method}: {row.passes} passes, {row.ms_per_step:.0f} ms a step, "
            f"{row.ratio_to_float_per_pass:.3f} float steps a pass ({low:.3f} to {high:.3f})"
        )
    if args.json:
        content = {
            "turns": args.turns, "cores": os.cpu_count(), "load": os.getloadavg()[0],
            "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        args.json.write_text(json.dumps(content, indent=2) + "\n")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line; lists are split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default="preact_resnet20_narrow,mobilenet_v2_small")
    parser.add_argument("--methods", default="mebqat,mebqat_float,coquant")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    args.nets, args.methods = args.nets.split(","), args.methods.split(",")
    if args.turns < 2:
        parser.error("--turns must be at least 2")
    if unknown := set(args.methods) - set(PASSES):
        parser.error(f"--methods {', '.join(unknown)}: expected some of {', '.join(PASSES)}")
    return args


def measured(net: str, args: argparse.Namespace) -> list[Row]:
    """Return a row for every method on one network."""
    names = ["float", *(method for method in args.methods if method != "float")]
    script, sizes = str(Path(__file__)), (str(args.batch), str(args.threads))
    commands = {name: [sys.executable, script, "engine", name, net, *sizes] for name in names}
    timings = interleaved.measure(commands, args.turns, args.threads)
    rows = []
    for name, timing in timings.items():
        passes, turns = PASSES[name], sorted(timing.turns(args.threads))
        low, middle, high = (
            ratio / passes for ratio in timing.ratios(timings["float"], args.threads)
        )
        ms = turns[len(turns) // 2]
        rows.append(Row(name, net, passes, args.batch, args.threads, ms, middle, (low, high)))
    return rows


class Steps:
    """Does a step at each call; built at the first, so that others wait for none of it."""

    def __init__(self, method: str, net: str, batch: int) -> None:
        self.method, self.net, self.batch = method, net, batch
        self.done = 0

    def __call__(self) -> None:
        """Do a step."""
        if not self.done:
            self._build()
        self._step()
        self.done += 1

    def _build(self) -> None:
        torch.manual_seed(0)
        shape = model_entry(self.net).input_shape
        x = torch.rand(self.batch, *shape).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(_CLASSES, (self.batch,))
        if self.method == "float":
            config = MebqatConfig("benchmark", self.net, "none", batch_size=self.batch)
            network = build_network(config, shape, _CLASSES)
            phase = plain_phase("float", config, network, 1, 0.01)
            network.train()
            self._step = lambda: phase.step((x, labels), Averages())
        elif self.method in METHODS:
            self._step = self._joint(x, labels)
        else:
            self._step = self._tasked(x, labels)

    def _tasked(self, x: Tensor, labels: Tensor) -> Callable[[], None]:
        config = MebqatConfig(
            "benchmark", self.net, "none", batch_size=self.batch, shared_steps=False
        )
        model = self._prepared(config, x)[1]
        update, losses = pairs_step(config, model)
        pairs = config.pairs()
        tasks = TaskBatches(_Same(), pairs, TASKS, forced_tasks(pairs))

        def step() -> None:
            drawn = tasks.drawn(1, self.done)
            chosen = drawn if self.method == "mebqat" else (FLOAT_BITS,) * TASKS
            update(losses, Tasked((x, labels), chosen), Averages())

        return step

    def _joint(self, x: Tensor, labels: Tensor) -> Callable[[], None]:
        start = CoquantConfig("benchmark", self.net, "none", batch_size=self.batch)
        bits = ",".join(map(str, PRECISIONS))
        config = override(start, [f"method={self.method}", f"activation_bits={bits}"])
        network, model = self._prepared(config, x)
        blocks, prefix = find_blocks(network, model), with_norms(config, model)
        update, losses = joint_step(config, model, prefix, blocks)
        swaps = swapping(config, _Same(), blocks)

        def step() -> None:
            update(losses, Swapped((x, labels), swaps.drawn(1, self.done)), Averages())

        return step

    def _prepared(self, config: TrainConfig, x: Tensor) -> tuple[nn.Module, nn.Module]:
        """Return the network, and it with quantizers."""
        network = build_network(config, x.shape[1:], _CLASSES)
        model = prepare(network, quant_spec(config), x.shape[1:])
        calibrate(model, x[:64])
        return network, model


class _Same:
    """A source of batches that is asked for its seed and length alone."""

    seed = 0

    def __len__(self) -> int:
        return _STEPS

    def epoch(self, index: int, start: int = 0) -> NoReturn:
        raise NotImplementedError


if __name__ == "__main__":
    main()
