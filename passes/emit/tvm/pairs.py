"""One network at several pairs of bit-widths in one library: two functions for each pair.

Kernels of equal specification and equal constants are there once: w4a2, w4a4 and w4a8 share
their weights. Weights that nest are stored at the widest; a function for each other width
makes what its kernels read (`passes.emit.tvm.cpu.narrowing`), and the functions of such pairs
take the result as a second argument.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import qtool
from passes.emit.base import Note
from passes.emit.facts import describe
from passes.emit.tvm.compile import (
    Compiled,
    described_code,
    file_json,
    network_json,
    sealed_code,
    versions_json,
)
from passes.emit.tvm.cpu.network import Network
from passes.emit.tvm.cpu.tvm_module import TvmModule, emit, plan_network
from passes.emit.tvm.cpu_target import CpuTarget
from passes.emit.tvm.library import LIBRARY
from passes.emit.tvm.tuning import TuneOptions
from qtool.core.dialect import Program
from qtool.core.sealed import function_names, networks_of


@dataclass(frozen=True)
class CompiledPairs:
    """The library of several pairs, and what it is compared with.

    Args:
        compiled: its code; the facts are by pair (`qtool.core.sealed.networks_of`).
        largest: the pair with the most bytes of weights.
        alone: the same kind of file of that pair only.
    """

    compiled: Compiled
    largest: str
    alone: Compiled

    @property
    def ratio(self) -> float:
        """How many times as large as the largest pair alone."""
        return len(self.compiled.data) / len(self.alone.data)

    def sentences(self) -> Iterator[str]:
        """Say how large the file is, and what of it."""
        all_pairs, one = self.compiled.module, self.alone.module
        yield (
            f"{len(all_pairs.networks)} pairs in {len(self.compiled.data):,} bytes, "
            f"{self.ratio:.2f} x {self.largest} alone: {all_pairs.constants:,} of constants "
            f"({one.constants:,} alone), {_kernels(all_pairs)} kernels ({_kernels(one)} alone)"
        )


def _made_by(module: TvmModule, pair: str | None) -> str | None:
    """Return the function that makes a pair's weights; None where there is nothing to make."""
    made = module.weights.get(pair)
    return None if made is None else made.name


def _kernels(module: TvmModule) -> int:
    """Return the number of a module's kernels."""
    uses = (use for facts in module.networks.values() for use in facts["kernels"])
    return len({use["function"] for use in uses})


def plan_pairs(
    programs: Mapping[str, Program],
    target: CpuTarget,
    tune: TuneOptions | None = None,
    note: Note | None = None,
) -> dict[str | None, Network]:
    """Return what becomes one module, by the pairs' names; raises as `plan_network`."""
    return {pair: plan_network(p, target, tune, note) for pair, p in programs.items()}


def compile_pairs(
    networks: Mapping[str | None, Network],
    target: CpuTarget,
    suffix: str = LIBRARY,
    note: Note | None = None,
) -> CompiledPairs:
    """Compile `networks` into one library for batch 1 and seal it, and the largest alone.

    Without debug information, which says nothing of code that has no source, and would be
    there once a pair.

    Args:
        networks: of `plan_pairs`.
        target: the CPU that they are planned for.
        suffix: ".so", or ".tar" for object files, which have no seal.
        note: is told what is going on.
    """
    module, code = emit(networks), described_code(target, batch=1)
    facts = {pair: describe(network.program) for pair, network in networks.items()}
    said = {
        pair: of | {"weights": _made_by(module, pair), "module": module.networks[pair]}
        for pair, of in facts.items()
    }
    seal = {"qtool": qtool.__version__, **code, "pairs": said}
    compiled = sealed_code(module, seal, target, suffix, note, strip=True)
    largest = max(facts, key=lambda pair: (facts[pair]["weight_bytes"], facts[pair]["bops"]))
    single = emit({None: networks[largest]})
    content = facts[largest] | code | {"module": single.facts}
    alone = sealed_code(single, content, target, suffix, None, strip=True)
    return CompiledPairs(compiled, str(largest), alone)


def pairs_json(
    name: str,
    pairs: CompiledPairs,
    programs: Mapping[str, Program],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Return the content of model.json (docs/pairs.md, "model.json").

    Args:
        name: of the file beside it.
        pairs: the file's content.
        programs: what it computes, by pair.
        left_out: why other pairs are not in it, by their names.
    """
    compiled, known = pairs.compiled, networks_of(pairs.compiled.facts)
    return {
        **file_json(name, compiled),
        "versions": versions_json(compiled.facts),
        "target": compiled.facts["cpu"],
        "weight_blob_bytes": compiled.module.constants,
        "made_bytes": {made.name: made.bytes for made in compiled.module.weights.values()},
        "largest_alone": {"pair": pairs.largest, "bytes": len(pairs.alone.data)},
        "ratio": round(pairs.ratio, 4),
        "pairs": {pair: _entry(pair, known[pair], programs[pair]) for pair in programs},
        "left_out": dict(left_out),
    }


def _entry(pair: str, facts: Mapping[str, Any], program: Program) -> dict[str, Any]:
    """Return what model.json says of a pair."""
    run, trace = function_names(pair)
    content = network_json(facts, program)
    del content["target"]
    return {
        "function": run, "trace": trace, "weights": facts["weights"],
        "digest": facts["digest"], "dataset": facts["dataset"], **content,
    }  # fmt: skip
