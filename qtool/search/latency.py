"""Latency of each layer at each of its candidates, measured on this machine's runtime.

Every layer alone, as it is deployed (`qtool.search.one_layer`, then the export's own passes
and emitters), in a process of its own, batch 1, one thread; layers of equal geometry once.
Weights are random: no kernel's time depends on their values. And the whole network at its
widest and its narrowest bits, which the sum of layers is corrected with
(`qtool.search.latency_table`).
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import torch

import qtool
from passes.emit.registry import make_target
from passes.pipelines import lower
from qtool.core.dialect import static_shape
from qtool.core.errors import UserError
from qtool.core.selection import LayerBits, Selection
from qtool.export.trace import trace
from qtool.networks import build_float, quant_spec
from qtool.nn.control import calibrate
from qtool.nn.prepare.prepare import LayerSpec, prepare
from qtool.runs.run import Run
from qtool.search.latency_table import (
    LatencyTable,
    Timing,
    Whole,
    network_of,
    read_table,
    require_fit,
)
from qtool.search.one_layer import LAYER, Geometry, geometries, one_layer
from qtool.search.space import SearchLayer, Space
from runtimes.host_name import cpu_name
from runtimes.isa import integer_features
from runtimes.latency import measure
from runtimes.registry import SEARCHED, runtime_entry

__all__ = ["LatencyTable", "load_table", "machine_of", "measure_latency"]

Note = Callable[[str], None]
_THREADS = 1


def machine_of(runtime: str) -> dict[str, str | int]:
    """Return what a measurement on this machine depends on: CPU, versions, threads."""
    entry = runtime_entry(runtime, SEARCHED)
    entry.require()
    return {
        "runtime": runtime, "version": entry.version,
        "cpu": cpu_name(), "isa": ", ".join(integer_features()), "threads": _THREADS,
        "qtool": qtool.__version__,
    }  # fmt: skip


def measure_latency(run: Run, space: Space, runtime: str, note: Note) -> LatencyTable:
    """Measure every open layer of `space`, and the network at two selections.

    Args:
        run: names the network; needs no weights.
        space: layers and candidates.
        runtime: one of `runtimes.registry.SEARCHED`.
        note: is told what is being measured.

    Raises:
        UserError: unknown or missing runtime, nothing to choose.
    """
    machine = machine_of(runtime)
    if not space.open:
        raise UserError(
            "latency: no layer has a choice of bits, so there is nothing to measure"
        )
    # What is drawn here must not change what a search draws later.
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        stopwatch = _Stopwatch(Path(folder), runtime, note)
        network = _network(run, space)
        alone = geometries(network, run.input_shape)
        layers = {
            layer.name: stopwatch.layer(layer, alone[layer.name]) for layer in space.open
        }
        calibrate(network, torch.rand(2, *run.input_shape))
        graph = trace(network, run.input_shape)
        wholes = [stopwatch.whole(graph, space, pick) for pick in (max, min)]
    return LatencyTable(machine, network_of(space), layers, *wholes)


def load_table(path: Path, space: Space, runtime: str) -> LatencyTable:
    """Return the table in `path`, if it is what would be measured here.

    Raises:
        UserError: missing, damaged; another machine, runtime or network; candidates that were
            not measured.
    """
    table = read_table(path)
    require_fit(table, path, machine_of(runtime), space)
    return table


def _network(run: Run, space: Space) -> torch.fx.GraphModule:
    """Return the run's network, random, with the candidates of `space`."""
    exceptions = {
        layer.name: LayerSpec(
            tuple(dict.fromkeys(bits.weight for bits in layer.choices)),
            tuple(dict.fromkeys(bits.activation for bits in layer.choices)),
        )
        for layer in space.layers
    }
    spec = replace(quant_spec(run.config), layers=exceptions)
    return prepare(build_float(run), spec, run.input_shape)


class _Stopwatch:
    """Builds files in `folder` and measures them, each distinct one once."""

    def __init__(self, folder: Path, runtime: str, note: Note) -> None:
        self.folder, self.runtime, self.note = folder, runtime, note
        self.target = make_target(runtime_entry(runtime).runs, {})
        self.known: dict[tuple[Geometry, LayerBits], Timing] = {}

    def layer(self, layer: SearchLayer, alone: Geometry) -> Mapping[LayerBits, Timing]:
        """Return the timing of a layer at each of its choices."""
        missing = [bits for bits in layer.choices if (alone, bits) not in self.known]
        graph = one_layer(alone, missing) if missing else None
        for bits in missing:
            if graph is not None:
                timing = self._time(graph, {LAYER: bits}, f"layer {layer.name}")
                self.known[alone, bits] = timing
        return {bits: self.known[alone, bits] for bits in layer.choices}

    def whole(self, graph: ir.Model, space: Space, pick: Callable[..., LayerBits]) -> Whole:
        """Return the timing of the network at the choices with the most or fewest bits."""
        bits = {
            layer.name: pick(layer.choices, key=lambda b: (b.weight * b.activation, b.weight))
            for layer in space.open
        }
        return Whole(bits, self._time(graph, bits, "the network"))

    def _time(self, graph: ir.Model, bits: Mapping[str, LayerBits], what: str) -> Timing:
        shown = {f"w{b.weight}a{b.activation}" for b in bits.values()}
        self.note(f"latency on {self.runtime}: {what} at {', '.join(sorted(shown))}")
        dialect = lower(graph.clone(), Selection(bits), allow_float=True)
        number, suffix = len(list(self.folder.iterdir())), self.target.suffixes[0]
        path = self.folder / f"{number}{suffix}"
        self.target.write(dialect, path)
        shape = static_shape(dialect.graph.inputs[0])
        found = measure(path, self.runtime, shape, _THREADS)
        low, high = found.quartiles
        return Timing(1e-3 * low, 1e-3 * found.median, 1e-3 * high)
