"""Latencies of a check: the deployed files, and the floating point that they replace.

Every runtime is measured alone in its process, all with as many threads. Where integers are
slower than floats it is said, with the ratio, the likely reason and what to do.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from passes.emit.registry import TARGETS
from qtool.checking.original import Origins
from qtool.core.progress import Progress
from qtool.export.export import export_float
from runtimes.base import Artifact
from runtimes.latency import Latency, measure
from runtimes.registry import ENGINE, RUNTIMES

FLOAT, ORIGINAL = "fp32 ort", "original ort"


def latencies(
    runtimes: Mapping[str, Artifact], baselines: Mapping[str, Path], progress: Progress
) -> dict[str, Latency]:
    """Return the latency of every runtime and then of the baselines, by name.

    Args:
        runtimes: what each executes.
        baselines: result of `opened_baselines`.
        progress: where the user sees what is going on.
    """
    result: dict[str, Latency] = {}
    facts = next(iter(runtimes.values())).facts
    shape, kind = tuple(facts["input_shape"]), facts["input_kind"]
    for name, artifact in runtimes.items():
        if RUNTIMES[name].timed:
            progress.note(f"measuring the latency of {name}")
            result[name] = measure(artifact.path, name, shape, kind=kind, pair=artifact.pair)
    for name, path in baselines.items():
        progress.note(f"measuring the latency of {name}")
        fed = "float32" if name == FLOAT else kind
        try:
            result[name] = measure(path, ENGINE, shape, kind=fed)
        except RuntimeError as error:  # a file that fixes its batch, say
            progress.note(f"no latency of {path}: {error}")
    return result


@contextmanager
def opened_baselines(origins: Origins, progress: Progress) -> Iterator[dict[str, Path]]:
    """Within this context, return files of what the integers replace, by `latencies`' names.

    Args:
        origins: the run, whose float network is exported, and the file that was imported.
        progress: where the user sees what is going on.
    """
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Path] = {}
        if origins.float_file is not None:
            found[FLOAT] = origins.float_file
        elif origins.run is not None:
            progress.note(f"exporting the float network of {origins.run}")
            found[FLOAT] = Path(folder) / "fp32.onnx"
            export_float(origins.run, found[FLOAT])
        if origins.file is not None:
            found[ORIGINAL] = origins.file
        yield found


def slow(
    times: Mapping[str, Latency], reasons: Mapping[str, str | None]
) -> tuple[str, ...] | None:
    """Return a sentence for every runtime that is slower than the first baseline.

    None: there is no baseline, or none is slower by more than measurements scatter: half of
    the times of each lie on its own side.

    Args:
        times: result of `latencies`.
        reasons: why a runtime may be slow, where that is known.
    """
    base = next((name for name in (FLOAT, ORIGINAL) if name in times), None)
    if base is None:
        return None
    limit, said = times[base], []
    for name, latency in times.items():
        if name in RUNTIMES and latency.quartiles[0] > limit.quartiles[1]:
            ratio = latency.median / limit.median
            why = f": {reasons[name]}" if reasons.get(name) else ""
            said.append(
                f"{name} takes {ratio:.2f} x the time of {base}{why}; {_advice(times, limit)}"
            )
    return tuple(said) or None


def _advice(times: Mapping[str, Latency], limit: Latency) -> str:
    """Say what to do: what is faster already, or what was not tried."""
    faster = [name for name in times if name in RUNTIMES and times[name].median < limit.median]
    if faster:
        return f"{min(faster, key=lambda name: times[name].median)} is faster"
    untried = {
        entry.runs for name, entry in RUNTIMES.items()
        if name not in times and entry.timed and entry.exact and entry.setup is None
    } & {*TARGETS}  # fmt: skip
    if untried:
        return f"try qtool export --target {', '.join(sorted(untried))}"
    return "no target of this machine was faster"


def why_slow(counts: tuple[int, int] | None, floats: Mapping[str, int]) -> str | None:
    """Return why an engine is slow, from the graph that it executes.

    Args:
        counts: operators that look up in tables, and all (`runtimes.base.TellsTables`).
        floats: its float operators.
    """
    said = []
    if counts and counts[0]:
        said.append(
            f"{counts[0]} of its {counts[1]} operators are tables (Cast -> Gather) of "
            "activations such as SiLU"
        )
    if floats:
        said.append(f"{sum(floats.values())} operators compute in floating point")
    return " and ".join(said) or None
