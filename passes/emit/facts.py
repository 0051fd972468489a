"""What a check, a report and a reader of model.json need to know about a program."""

import json
from collections.abc import Mapping
from typing import Any

import qtool
from passes.packing.packing import weight_bytes
from qtool.core.cost import total_bops, total_macs
from qtool.core.dialect import Program, Quantize
from qtool.core.errors import UserError

DATASET_KEY = "qtool.dataset"
VERSION_KEY = "qtool.version"
# Images a clip of the video that a run was trained on; absent where it is the usual number.
FRAMES_KEY = "qtool.frames"
# Names of the classes, a list as JSON, of a network that was given them (`qtool adapt`).
CLASSES_KEY = "qtool.classes"
# What bits that were never trained were given, in words; absent where all were trained.
ZERO_SHOT_KEY = "qtool.zero_shot"
# Of these, every file holds what the dialect has.
FILE_KEYS = (DATASET_KEY, FRAMES_KEY, VERSION_KEY, CLASSES_KEY, ZERO_SHOT_KEY)


def describe(program: Program) -> dict[str, Any]:
    """Return what a check needs to know about an artifact, as JSON values."""
    costs, grid = program.layer_costs(), program.output_grid
    return {
        "digest": program.digest(),
        "qtool": qtool.__version__,
        "dataset": program.metadata.get(DATASET_KEY),
        "frames": int(program.metadata.get(FRAMES_KEY, 0)),
        "classes": _classes(program.metadata),
        "zero_shot": program.metadata.get(ZERO_SHOT_KEY),
        "input_shape": list(program.input_shape),
        "output_scale": float(grid.scale),
        "output_zero_point": grid.zero_point,
        "output_kind": "float32" if program.float_output else "uint8",
        "tensors": program.tensors(),
        "layers": {cost.name: [cost.bits.weight, cost.bits.activation] for cost in costs},
        "layer_macs": {cost.name: cost.macs for cost in costs},
        "macs": total_macs(costs),
        "bops": total_bops(costs),
        "weight_bytes": weight_bytes(program),
        "input_kind": program.input_kind,
        "islands": [
            {"name": op.name, "operators": list(op.operators)} for op in program.islands()
        ],
        "input_range": _input_range(program),
    }


def describe_module(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a report and model.json say of a TVM module's code.

    Args:
        facts: what its seal holds; "module" is the facts of a
            `passes.emit.tvm.cpu.tvm_module.TvmModule`.
    """
    module = facts["module"]
    kept = (
        "largest_pair_bytes", "weight_blob_bytes", "kernels", "fallbacks", "packed_weights",
        "fused_tensors",
    )  # fmt: skip
    return {
        "target": facts.get("device") or facts["cpu"],
        "peak_activation_bytes": module["arena_bytes"],
        **{name: module[name] for name in kept},
    }


def _classes(metadata: Mapping[str, str]) -> list[str]:
    """Return the names of the classes, none where a file does not say them."""
    text = metadata.get(CLASSES_KEY, "[]")
    try:
        return [str(name) for name in json.loads(text)]
    except (ValueError, TypeError):
        raise UserError(
            f"its {CLASSES_KEY} metadata is damaged: {text[:60]!r}: export it again"
        ) from None


def _input_range(program: Program) -> list[float] | None:
    """Return the values that the first grid on the input covers, None for raw pixels."""
    for op in program.ops:
        if isinstance(op, Quantize):
            ends = (op.lo - op.grid.zero_point, op.hi - op.grid.zero_point)
            return [float(end * op.grid.scale) for end in ends]
    return None
