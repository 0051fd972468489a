"""Measured seconds by layer and bits, and what a whole network's latency follows from them.

    latency(bits) ~ fixed + sum over open layers of seconds(layer, bits of it)

`fixed` holds the layers without a choice and all that a sum of single layers is wrong by: a
call's overhead is in every single measurement, but once in the network. It is fitted to the
network measured whole at its widest and its narrowest bits; `misfit` is what is left then.
On CPUs narrow activations run in the kernels of 8-bit ones, so that bits may move latency by
less than measurements differ: `spread` and `noise` say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.core.errors import UserError
from qtool.core.files import read_json, write_json
from qtool.core.selection import LayerBits, check_format

if TYPE_CHECKING:
    from qtool.search.space import Space

TABLE_FORMAT = 1


@dataclass(frozen=True)
class Timing:
    """Seconds of many runs: lower quartile, median, upper quartile."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Whole:
    """The whole network, measured at one selection of its open layers' bits."""

    bits: Mapping[str, LayerBits]
    timing: Timing


@dataclass(frozen=True)
class LatencyTable:
    """Measured latency, batch 1.

    Args:
        machine: what it was measured on; see `qtool.search.latency.machine_of`.
        network: (MACs, weights) of every layer, by name.
        layers: timing of every open layer alone, by bits.
        widest: the network at the most bits.
        narrowest: the network at the fewest bits.
    """

    machine: Mapping[str, str | int]
    network: Mapping[str, tuple[int, int]]
    layers: Mapping[str, Mapping[LayerBits, Timing]]
    widest: Whole
    narrowest: Whole

    @property
    def fixed(self) -> float:
        """Seconds that do not depend on bits; negative where calls cost more than layers."""
        return (self._rest(self.widest) + self._rest(self.narrowest)) / 2

    @property
    def misfit(self) -> float:
        """Seconds by which fixed + sum misses both measurements of the whole network."""
        return abs(self._rest(self.widest) - self._rest(self.narrowest)) / 2

    @property
    def noise(self) -> float:
        """Seconds between the quartiles of the whole network, the larger of both."""
        timings = (self.widest.timing, self.narrowest.timing)
        return max(timing.high - timing.low for timing in timings)

    def _rest(self, whole: Whole) -> float:
        parts = (self.layers[name][bits].median for name, bits in whole.bits.items())
        return whole.timing.median - sum(parts)

    def spread(self) -> tuple[float, float]:
        """Return the predicted seconds of the fastest and of the slowest selection."""
        medians = [[t.median for t in row.values()] for row in self.layers.values()]
        return self.fixed + sum(map(min, medians)), self.fixed + sum(map(max, medians))

    def costs(self, space: "Space") -> list[list[float]]:
        """Return seconds for each of `space.open`, for each of its choices."""
        return [
            [self.layers[layer.name][bits].median for bits in layer.choices]
            for layer in space.open
        ]

    def describe(self) -> str:
        """Return what a user should know before trusting a budget of time."""
        fastest, slowest = self.spread()
        weak = slowest - fastest <= max(self.noise, 2 * self.misfit)
        return (
            f"latency on {self.machine['runtime']}, {self.machine['threads']} thread: bits "
            f"move it from {1e3 * fastest:.4g} to {1e3 * slowest:.4g} ms; quartiles of one "
            f"measurement are {1e3 * self.noise:.2g} ms apart, the sum of layers misses the "
            f"network by {1e3 * self.misfit:.2g} ms"
            + (": bits hardly matter for latency here" if weak else "")
        )

    def save(self, path: Path) -> None:
        """Write the table as JSON; `load_table` reads it."""
        write_json(path, {
            "format": TABLE_FORMAT,
            "machine": dict(self.machine),
            "network": {name: list(size) for name, size in self.network.items()},
            "layers": {
                name: {_key(bits): _list(timing) for bits, timing in row.items()}
                for name, row in self.layers.items()
            },
            "whole": {
                "widest": _whole_json(self.widest), "narrowest": _whole_json(self.narrowest),
            },
        })  # fmt: skip


def network_of(space: "Space") -> dict[str, tuple[int, int]]:
    """Return what identifies the network of `space`."""
    return {layer.name: (layer.macs, layer.weights) for layer in space.layers}


def read_table(path: Path) -> LatencyTable:
    """Return the table in `path`, of whatever machine and network.

    Raises:
        UserError: missing, damaged, or of a newer format.
    """
    what = f"latency table {path}"
    value = read_json(path, "latency table")
    check_format(value, TABLE_FORMAT, what)
    try:
        whole, machine = value["whole"], dict(value["machine"])
        machine |= {"runtime": machine["runtime"], "threads": int(machine["threads"])}
        table = LatencyTable(
            machine,
            {name: (int(macs), int(n)) for name, (macs, n) in value["network"].items()},
            {
                name: {_bits(key): Timing(*map(float, timing)) for key, timing in row.items()}
                for name, row in value["layers"].items()
            },
            _whole(whole["widest"]), _whole(whole["narrowest"]),
        )  # fmt: skip
        table.spread()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{what} is damaged: {error!r}; measure again") from None
    return table


def require_fit(
    table: LatencyTable, path: Path, machine: Mapping[str, Any], space: "Space"
) -> None:
    """Refuse a table of another machine, runtime, network or other candidates."""
    for key in machine:
        if table.machine.get(key) != machine[key]:
            raise UserError(
                f"latency table {path} was measured with {key} {table.machine.get(key)}, here "
                f"it is {machine[key]}: measure again, into another file"
            )
    wanted = network_of(space)
    for name in [*wanted, *table.network]:
        if wanted.get(name) != table.network.get(name):
            raise UserError(
                f"latency table {path} is of another network (layer {name}): measure again, "
                "into another file"
            )
    for layer in space.open:
        for bits in layer.choices:
            if bits not in table.layers.get(layer.name, {}):
                raise UserError(
                    f"latency table {path}: layer {layer.name} was not measured at "
                    f"{_key(bits)}: measure again, into another file"
                )


def _key(bits: LayerBits) -> str:
    return f"w{bits.weight}a{bits.activation}"


def _bits(key: str) -> LayerBits:
    weight, _, activation = key.removeprefix("w").partition("a")
    return LayerBits(int(weight), int(activation))


def _list(timing: Timing) -> list[float]:
    return [timing.low, timing.median, timing.high]


def _whole_json(whole: Whole) -> dict[str, Any]:
    bits = {name: _key(chosen) for name, chosen in whole.bits.items()}
    return {"seconds": _list(whole.timing), "bits": bits}


def _whole(value: Mapping[str, Any]) -> Whole:
    seconds: Sequence[float] = value["seconds"]
    bits = {name: _bits(key) for name, key in value["bits"].items()}
    return Whole(bits, Timing(*map(float, seconds)))
