"""Parity: how many integers differ between runtimes, where, and why."""

from typing import Any

import numpy as np

from qtool.checking.accuracy import agreement
from qtool.checking.collect import ISLAND_IMAGES, Checked, fed
from qtool.checking.models import Model
from qtool.checking.record import (
    Count,
    Diverging,
    FirstDivergence,
    IslandRecord,
    ParityRecord,
)
from qtool.core.records import from_json
from qtool.data.images import DataSet
from qtool.data.random_inputs import RandomInputs
from runtimes.base import Floats, Runtime, TellsIslands
from runtimes.compare import Parity, output_codes
from runtimes.isa import Isa
from runtimes.registry import RUNTIMES


def island_ops(runtime: Runtime, model: Model) -> dict[str, int] | None:
    """Return which of the float operators belong to the islands that the export allowed.

    None: there are no islands, or the runtime does not tell.
    """
    islands = model.program.islands() if model.program is not None else []
    if not islands or not isinstance(runtime, TellsIslands):
        return None
    return dict(runtime.island_ops([op.grid for op in islands]))


def island_differences(
    model: Model, checked: Checked, data: DataSet | RandomInputs
) -> tuple[IslandRecord, ...]:
    """Count how far each float island of ONNX Runtime is from numpy's."""
    if model.program is None or not model.program.islands():
        return ()
    from runtimes.islands import compare_islands

    tensors = next(iter(checked.tensors.values()))
    head = {name: codes[:ISLAND_IMAGES] for name, codes in tensors.items()}
    found = compare_islands(model.program, fed(model, data, slice(ISLAND_IMAGES)), head)
    return tuple(from_json(IslandRecord, island) for island in found)


def compare_runtimes(model: Model, checked: Checked, isa: Isa) -> dict[str, ParityRecord]:
    """Compare all with the first exact runtime: every logit, the first images' tensors."""
    names = list(checked.outputs)
    baseline = next((name for name in names if RUNTIMES[name].exact), names[0])
    return {
        name: _compared(model, checked, baseline, name, isa)
        for name in names
        if name != baseline
    }


def _compared(
    model: Model, checked: Checked, baseline: str, name: str, isa: Isa
) -> ParityRecord:
    """Compare runtime `name` with `baseline`."""
    parity, pair = Parity(), [checked.outputs[n] for n in (baseline, name)]
    artifact = model.artifact(name)
    fused = () if artifact is None else artifact.fused
    parity.add_all(checked.tensors[baseline], checked.tensors[name], fused)
    before = parity.mismatched
    parity.add("logits", *(_codes(model, outputs) for outputs in pair))
    first = parity.first_divergence
    kinds = {op.output: type(op).__name__ for op in model.program.ops} if model.program else {}
    return ParityRecord(
        against=baseline,
        required=RUNTIMES[name].exact and (artifact is None or artifact.differs is None),
        mismatched=parity.mismatched,
        compared=parity.compared,
        max_lsb=parity.max_lsb,
        first_divergence=None if first is None else from_json(FirstDivergence, first),
        diverging=tuple(
            Diverging(**entry, operator=kinds.get(entry["tensor"]))
            for entry in parity.diverging
        ),
        reason=_reason(model, name, baseline, isa) if parity.mismatched else None,
        logits=Count(parity.mismatched - before, pair[0].size),
        same_class=agreement(pair[0].argmax(1), pair[1].argmax(1)),
    )


def _reason(model: Model, name: str, baseline: str, isa: Isa) -> str | None:
    """Return why runtime `name` differs from `baseline`, where that is known."""
    for runtime in (name, baseline):
        artifact = model.artifact(runtime)
        if artifact is not None and artifact.differs is not None:
            return f"{runtime}: {artifact.differs}"
        if reason := RUNTIMES[runtime].reason(isa):
            return reason
    islands = [island["name"] for island in model.facts.get("islands", ())]
    return f"float islands ({', '.join(islands)}) promise no exactness" if islands else None


def _codes(model: Model, outputs: Floats) -> Any:
    """Return the integers behind the outputs; the bits of those that are float themselves."""
    if model.facts.get("output_kind") == "float32":
        return np.ascontiguousarray(outputs).view(np.int32)
    return output_codes(outputs, model.facts["output_scale"], model.facts["output_zero_point"])
