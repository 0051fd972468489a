"""What a check found, typed. Its views: JSON (here), the terminal table, the required bars.

`CheckRecord.to_json` is README's check.json, `CheckRecord.from_json` reads such a file again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qtool.core.records import from_json, to_json
from qtool.witness.record import WitnessRecord
from runtimes.latency import Latency
from runtimes.registry import RUNTIMES


@dataclass(frozen=True)
class GlueChoice:
    """Accuracy in percent of `images` images with one choice of glue grids."""

    glue: str
    accuracy: float
    images: int


@dataclass(frozen=True)
class Glue:
    """What a run measured about glue grids at `bits`; the first choice is floating point."""

    phase: str
    bits: str
    chosen: str
    choices: tuple[GlueChoice, ...]


@dataclass(frozen=True)
class CodeTarget:
    """The CPU that a module is for, by LLVM's names, and the instructions of its kernels."""

    triple: str
    mcpu: str
    isa: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """A function of a module, the layers that call it, and how often."""

    function: str
    layers: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Fallback:
    """A layer without an integer kernel of qtool, and why."""

    layer: str
    operator: str
    reason: str


@dataclass(frozen=True)
class Module:
    """Compiled code: what it is for and made of (`passes.emit.facts.describe_module`).

    Args:
        target: its CPU.
        peak_activation_bytes: its memory for activations.
        largest_pair_bytes: the largest two tensors that live at once.
        weight_blob_bytes: constants.
        kernels, fallbacks: its functions; layers that have only a slow one.
        packed_weights: layers whose weights stay packed in memory.
        fused_tensors: those that kernels hold in registers only.
    """

    target: CodeTarget
    peak_activation_bytes: int
    largest_pair_bytes: int
    weight_blob_bytes: int
    kernels: tuple[Kernel, ...]
    fallbacks: tuple[Fallback, ...]
    packed_weights: tuple[str, ...]
    fused_tensors: tuple[str, ...]


@dataclass(frozen=True)
class Instructions:
    """Integer instructions of this CPU (`runtimes.isa.Isa`)."""

    summary: str
    name: str
    features: tuple[str, ...]
    u8s8_exact: bool
    wrong: int
    probed: int


@dataclass(frozen=True)
class Count:
    """How many integers differ."""

    mismatched: int
    compared: int


@dataclass(frozen=True)
class FirstDivergence:
    """The first tensor that differs: where, and the integers there; or its shapes."""

    tensor: str
    index: tuple[int, ...] | None = None
    expected: int | None = None
    got: int | None = None
    expected_shape: tuple[int, ...] | None = None
    got_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Diverging:
    """A tensor that differs, and the operator that makes it, where that is known."""

    tensor: str
    mismatched: int
    compared: int
    max_lsb: int
    operator: str | None


@dataclass(frozen=True)
class ParityRecord:
    """Differences of one runtime.

    Args:
        against: the runtime that it is compared with.
        required: 0 is required.
        mismatched, compared, max_lsb: counts over logits and tensors; the largest difference.
        first_divergence: None where nothing differs.
        diverging: tensors that differ, in execution order.
        reason: why, where that is known.
        logits: counts over all images' outputs.
        same_class: percent of the images.
    """

    against: str
    required: bool
    mismatched: int
    compared: int
    max_lsb: int
    first_divergence: FirstDivergence | None
    diverging: tuple[Diverging, ...]
    reason: str | None
    logits: Count
    same_class: float


@dataclass(frozen=True)
class Coverage:
    """Float operators by name in the graph that `runtime` executes; of them, of islands."""

    runtime: str
    float_ops: Mapping[str, int]
    island_ops: Mapping[str, int] | None = None


@dataclass(frozen=True)
class IslandRecord:
    """A float island, and in how many integers ONNX Runtime's differs from numpy's."""

    name: str
    operators: tuple[str, ...]
    mismatched: int
    compared: int
    max_lsb: int


@dataclass(frozen=True, kw_only=True)
class CheckRecord:
    """What the check of one model found; names and meaning are README's, "check.json".

    `modules` are in the JSON each under the name of the runtime that executes it. `original`
    is there where the files were compared with where they come from, `slow` where integers
    were slower than what they replace, `fp32_file_bytes` where the float network was at hand.
    `zero_shot` says what bits that were never trained were given, `devices` what runtimes
    computed on that have a choice. `fp32_accuracy`,
    `budget_bops` and `seconds` are the demo's.
    """

    files: Mapping[str, int]
    digest: str
    dataset: str | None
    images: int
    accuracy: Mapping[str, float]
    glue: Glue | None = None
    modules: Mapping[str, Module]
    isa: Instructions
    parity: Mapping[str, ParityRecord]
    original: WitnessRecord | None = None
    bops: int
    macs: int
    layers: Mapping[str, tuple[int, int]]
    zero_shot: str | None = None
    weight_bytes: int
    file_bytes: int
    integer_coverage: Coverage
    islands: tuple[IslandRecord, ...]
    float_ops: Mapping[str, Mapping[str, int]]
    devices: Mapping[str, str] | None = None
    latency_ms: Mapping[str, Latency]
    slow: tuple[str, ...] | None = None
    fp32_accuracy: float | None = None
    budget_bops: float | None = None
    fp32_file_bytes: int | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of check.json."""
        content: dict[str, Any] = {}
        for name, value in to_json(self).items():
            content |= value if name == _MODULES else {name: value}
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CheckRecord":
        """Return the record that `to_json` made `content` of.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it did not.
        """
        modules = {name: content[name] for name in RUNTIMES if name in content}
        return from_json(cls, {**content, _MODULES: modules})


_MODULES = "modules"
