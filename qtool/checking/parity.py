"""Parity: how many integers differ between runtimes, where, and why."""

from typing import Any

import numpy as np

from qtool.checking.accuracy import agreement
from qtool.checking.collect import ISLAND_IMAGES, Checked, fed
from qtool.checking.models import Model
from qtool.data.images import DataSet
from qtool.data.random_inputs import RandomInputs
from runtimes import EXACT
from runtimes.base import Floats, Runtime
from runtimes.compare import Parity, output_codes
from runtimes.isa import Isa


def island_ops(runtime: Runtime, model: Model) -> dict[str, Any]:
    """Return which of the float operators belong to the islands that the export allowed."""
    from runtimes.ort import OrtRuntime

    islands = model.program.islands() if model.program is not None else []
    if not islands or not isinstance(runtime, OrtRuntime):
        return {}
    return {"island_ops": dict(runtime.island_ops([op.grid for op in islands]))}


def island_differences(
    model: Model, checked: Checked, data: DataSet | RandomInputs
) -> list[dict[str, Any]]:
    """Count how far each float island of ONNX Runtime is from numpy's."""
    if model.program is None or not model.program.islands():
        return []
    from runtimes.islands import compare_islands

    tensors = next(iter(checked.tensors.values()))
    head = {name: codes[:ISLAND_IMAGES] for name, codes in tensors.items()}
    return compare_islands(model.program, fed(model, data, slice(ISLAND_IMAGES)), head)


def compare_runtimes(model: Model, checked: Checked, isa: Isa) -> dict[str, Any]:
    """Compare all with the first exact runtime: every logit, the first images' tensors."""
    names = list(checked.outputs)
    baseline = next((name for name in names if name in EXACT), names[0])
    ops = model.program.ops if model.program else ()
    kinds = {op.output: type(op).__name__ for op in ops}
    result: dict[str, Any] = {}
    for name in names:
        if name == baseline:
            continue
        parity, pair = Parity(), [checked.outputs[n] for n in (baseline, name)]
        fused = model.module["fused_tensors"] if name == "tvm" and model.module else ()
        parity.add_all(checked.tensors[baseline], checked.tensors[name], fused)
        before = parity.mismatched
        parity.add("logits", *(_codes(model, outputs) for outputs in pair))
        for entry in parity.diverging:
            entry["operator"] = kinds.get(entry["tensor"])
        result[name] = {
            "against": baseline, "required": name in EXACT, **parity.to_json(),
            "reason": _reason(model, name, baseline, isa) if parity.mismatched else None,
            "logits": {"mismatched": parity.mismatched - before, "compared": pair[0].size},
            "same_class": agreement(pair[0].argmax(1), pair[1].argmax(1)),
        }  # fmt: skip
    return result


def _reason(model: Model, name: str, baseline: str, isa: Isa) -> str | None:
    """Return why runtime `name` differs from `baseline`, where that is known."""
    if name not in EXACT:
        return f"{name} rounds in its own way (docs/openvino.md)"
    if isa.saturates and "ort" in (name, baseline):
        return f"this CPU has {isa}"
    islands = [island["name"] for island in model.facts.get("islands", ())]
    return f"float islands ({', '.join(islands)}) promise no exactness" if islands else None


def _codes(model: Model, outputs: Floats) -> Any:
    """Return the integers behind the outputs; the bits of those that are float themselves."""
    if model.facts.get("output_kind") == "float32":
        return np.ascontiguousarray(outputs).view(np.int32)
    return output_codes(outputs, model.facts["output_scale"], model.facts["output_zero_point"])
