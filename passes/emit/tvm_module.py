"""Integer dialect -> an IRModule of TVM, and what is to be known about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from passes.emit.cpu_target import CpuTarget
from passes.emit.relax import emit_relax
from passes.emit.tuning import TuneOptions
from qtool.dialect import Program


@dataclass(frozen=True)
class TvmModule:
    """An IRModule with the functions ``main`` and ``trace``, and its facts.

    Args:
        ir: the IRModule.
        facts: JSON values. "tensors": what ``trace`` returns, in order; "fused_tensors": those
            that live inside a kernel only; "arena_bytes", "largest_pair_bytes": activation
            memory, and the largest input and output of one operator; "kernels": of each
            "function", "layers" and "count"; "fallbacks": of each "layer", "operator" and
            "reason"; "packed_weights": layers whose 2 or 4-bit weights stay packed;
            "weight_blob_bytes".
    """

    ir: Any
    facts: dict[str, Any]


def emit_tvm(
    program: Program,
    target: CpuTarget,
    batch: int = 1,
    tune: TuneOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> TvmModule:
    """Return the module of `program` for `target` at a fixed batch size."""
    facts: dict[str, Any] = {
        "tensors": program.tensors(), "fused_tensors": [], "arena_bytes": 0,
        "largest_pair_bytes": 0, "kernels": [], "fallbacks": [], "packed_weights": [],
        "weight_blob_bytes": 0,
    }  # fmt: skip
    return TvmModule(emit_relax(program, batch), facts)
