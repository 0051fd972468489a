"""Layers of a network measured alone: which ones, built how, and with a real runtime."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from tiny_training import tiny_data
from torch import Tensor, nn

from qtool.core.errors import UserError
from qtool.core.selection import LayerBits
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.runs.run import Run
from qtool.search import latency
from qtool.search.latency import load_table, machine_of, measure_latency
from qtool.search.one_layer import Geometry, geometries
from qtool.search.space import Space, space_of
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.override import override
from runtimes.latency import Latency

SHAPE = (1, 8, 8)


class Network(nn.Module):
    """Twins in residual blocks, a depthwise layer, an inner linear layer; 8-bit ends."""

    def __init__(self, in_channels: int = 1, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.wise = nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.norm(self.a(x)).relu()).relu()
        x = (x + self.b(x).relu()).relu()
        x = self.wise(x)
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        y: Tensor = self.head(nn.functional.relu6(self.hidden(x)))
        return y


def space_and_geometries() -> tuple[Space, dict[str, Geometry]]:
    model = prepare(Network(), QuantSpec((8, 4), (4, 2)), SHAPE)
    return space_of(model, SHAPE), geometries(model, SHAPE)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has a recipe and no weights."""
    base = MetaMixConfig("tiny", "test_latency:Network", "none", activation_bits=(8, 4))
    config = override(base, ["batch_size=8"])
    return Run.create(tmp_path / "run", config, tiny_data(), resume=False, force=False)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """Replace the clock; keep the operators of every file that would have been measured."""
    files: list[Counter[str]] = []

    def count(path: Path, *_: Any) -> Latency:
        files.append(Counter(node.op_type for node in onnx.load(path).graph.node))
        took = float(files[-1]["Conv"] + files[-1]["Gemm"])
        return Latency(took, (took, took + 1), threads=1, runs=1)

    monkeypatch.setattr(latency, "measure", count)
    return files


def test_geometry_is_what_a_layer_is_in_its_network() -> None:
    _, found = space_and_geometries()
    a, b = found["a"], found["b"]
    assert (a.inputs, a.outputs, a.kernel, a.padding) == ((8, 8, 8), 8, (3, 3), (1, 1))
    assert a.bias and a.ceiling == float("inf") and not a.signed
    assert a == b and a.grid == 8  # both read tensors that an addition reads too
    assert found["stem"].grid is None and found["stem"].ceiling == float("inf")
    wise, hidden = found["wise"], found["hidden"]
    assert (wise.groups, wise.stride, wise.grid, wise.ceiling) == (8, (2, 2), None, None)
    assert (hidden.inputs, hidden.kernel, hidden.grid, hidden.signed) == ((8,), (), None, True)
    assert hidden.ceiling == 6


def test_each_geometry_is_measured_once_at_each_choice(
    run: Run, measured: list[Counter[str]], tmp_path: Path
) -> None:
    space, notes = space_and_geometries()[0], list[str]()
    state = torch.get_rng_state()
    table = measure_latency(run, space, "ort", notes.append)
    assert torch.equal(state, torch.get_rng_state())
    assert len(notes) == len(measured) == 3 * 4 + 2  # a is like b
    assert "latency on ort: layer a at w4a8" in notes
    alone, whole = measured[:-2], measured[-2:]
    assert all(files["Conv"] + files["Gemm"] == 1 for files in alone)
    assert all(files["Conv"] + files["Gemm"] == 6 for files in whole)
    # A change of grid, where the network has one, and only there.
    assert [files["LeakyRelu"] for files in alone] == [1] * 4 + [0] * 8
    assert table.costs(space) == [[1e-3] * 4] * 4
    assert table.fixed == pytest.approx(2e-3) and table.misfit == 0
    assert set(table.widest.bits.values()) == {LayerBits(4, 8)}
    assert set(table.narrowest.bits.values()) == {LayerBits(2, 4)}
    table.save(tmp_path / "table.json")
    assert load_table(tmp_path / "table.json", space, "ort") == table


def test_the_machine_is_named() -> None:
    found = machine_of("ort")
    assert found["threads"] == 1 and all(found.values())


def test_a_layer_runs_on_tvm(tmp_path: Path) -> None:
    """One layer at one choice, compiled and timed as a search does it."""
    bits, found = LayerBits(4, 4), space_and_geometries()[1]
    stopwatch = latency._Stopwatch(tmp_path, "tvm", lambda _: None)
    graph = latency.one_layer(found["a"], [bits])
    timing = stopwatch._time(graph, {latency.LAYER: bits}, "a")
    assert 0 < timing.low <= timing.median <= timing.high < 0.1


@pytest.mark.nightly
@pytest.mark.parametrize("runtime", ["ort", "tvm"])
def test_a_whole_network_is_measured(run: Run, runtime: str, tmp_path: Path) -> None:
    model = prepare(Network(), QuantSpec((8, 4), 4), SHAPE)
    space = space_of(model, SHAPE)
    table = measure_latency(run, space, runtime, print)
    fastest, slowest = table.spread()
    print(table.describe())
    assert (
        0
        < fastest
        <= slowest
        < 2 * max(t.timing.high for t in (table.widest, table.narrowest))
    )
    table.save(tmp_path / "table.json")
    assert load_table(tmp_path / "table.json", space, runtime) == table
    other = "ort" if runtime == "tvm" else "tvm"
    with pytest.raises(
        UserError, match=f"measured with runtime {runtime}, here it is {other}"
    ):
        load_table(tmp_path / "table.json", space, other)
