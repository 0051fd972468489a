"""The runtimes by name: the only place that lists them. Importing it imports none of them.

A runtime is a class in a file of its own (`runtimes.base.Runtime` says what it has) and an
entry here. Whoever treats runtimes differently asks the entry, never for a name.
"""

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from qtool.core.errors import unknown_name
from qtool.core.setups import SETUPS, Setup

if TYPE_CHECKING:
    from runtimes.base import Artifact, Runtime
    from runtimes.isa import Isa


@dataclass(frozen=True)
class RuntimeEntry:
    """What is known of a runtime without importing it.

    Args:
        name: its key.
        at: ``module:class``.
        summary: one line.
        runs: target whose files it executes, of `passes.emit.registry.TARGETS`.
        package: the distribution that it is part of: its version is the runtime's.
        extra: of qtool, that installs it; None: always installed.
        setup: of `qtool.core.setups.SETUPS`: the environment of its own that it runs in.
        differs: why it need not compute the reference's integers; None: it must.
        asked: why `qtool check` uses it on request only, though it is exact; None: it does
            unasked.
        saturates: its u8s8 sums are what `runtimes.isa` probes.
        timed: its latency says something.
        covers: of the runtimes of a check its graph counts as *the* integer coverage.
        provider: what ``--ort-provider`` calls it, where it is a provider of ONNX Runtime.
    """

    name: str
    at: str
    summary: str
    runs: str
    package: str
    extra: str | None = None
    setup: str | None = None
    differs: str | None = None
    asked: str | None = None
    saturates: bool = False
    timed: bool = True
    covers: bool = False
    provider: str | None = None

    @property
    def exact(self) -> bool:
        """Must it compute the reference's integers?"""
        return self.differs is None

    @property
    def unasked(self) -> bool:
        """Does `qtool check` use it where nothing else is said?"""
        return self.exact and self.asked is None

    @property
    def line(self) -> str:
        """What `qtool list` says."""
        asked = "" if self.asked is None else f"; used on request: {self.asked}"
        exact = asked if self.exact else "; not exact, used on request"
        extra = "" if self.extra is None else f" (extra: {self.extra})"
        setup = "" if self.setup is None else f" (qtool setup {self.setup})"
        return f"{self.summary}{exact}{extra}{setup}"

    @property
    def version(self) -> str:
        """What is installed of `package`, here or in its environment."""
        return metadata.version(self.package) if self.setup is None else self._set_up().version

    def require(self, artifact: "Artifact | None" = None) -> None:
        """Raise `UserError` unless it is installed and can load `artifact` on this machine."""
        self._kind().require(artifact)

    def open(self, artifact: "Artifact", threads: int = 1) -> "Runtime":
        """Return the runtime with `artifact` loaded."""
        return self._kind().open(artifact, threads)

    def reason(self, isa: "Isa") -> str | None:
        """Return why it may differ from others on a CPU, None where it may not."""
        if not self.exact:
            return f"{self.name} {self.differs}"
        return f"this CPU has {isa}" if self.saturates and isa.saturates else None

    def _set_up(self) -> "Setup":
        return SETUPS[str(self.setup)]

    def _kind(self) -> "type[Runtime]":
        module, _, name = self.at.partition(":")
        kind: type[Runtime] = getattr(import_module(module), name)
        return kind


RUNTIMES: dict[str, RuntimeEntry] = {
    "reference": RuntimeEntry(
        "reference", "runtimes.reference:ReferenceRuntime",
        "numpy, the definition of the integer dialect (qtool.core.numerics)",
        runs="onnx", package="numpy", timed=False,
    ),
    "ort": RuntimeEntry(
        "ort", "runtimes.ort:OrtRuntime", "ONNX Runtime, CPU, on model.onnx",
        runs="onnx", package="onnxruntime", saturates=True, covers=True,
    ),
    "ort-cuda": RuntimeEntry(
        "ort-cuda", "runtimes.ort_gpu:OrtCudaRuntime",
        "ONNX Runtime, CUDA, on model.onnx",
        runs="onnx", package="onnxruntime-gpu", provider="cuda",
        differs="computes most quantized convolutions in floating point (docs/gpu.md)",
    ),
    "ort-tensorrt": RuntimeEntry(
        "ort-tensorrt", "runtimes.ort_gpu:OrtTensorRtRuntime",
        "ONNX Runtime, TensorRT, on model.onnx",
        runs="onnx", package="onnxruntime-gpu", provider="tensorrt",
        differs="compiles engines of TensorRT, which round in their own way (docs/gpu.md)",
    ),
    "tvm": RuntimeEntry(
        "tvm", "runtimes.tvm:TvmRuntime", "TVM virtual machine, CPU or CUDA, on model.so",
        runs="tvm", package="apache-tvm", extra="tvm",
    ),
    "openvino": RuntimeEntry(
        "openvino", "runtimes.openvino:OpenVinoRuntime", "OpenVINO, CPU, on model.onnx",
        runs="onnx", package="openvino", extra="openvino",
        differs="rounds in its own way (docs/openvino.md)",
    ),
    "triton": RuntimeEntry(
        "triton", "runtimes.triton.runtime:TritonRuntime",
        "Triton kernels on a CUDA GPU, on model.onnx",
        runs="onnx", package="triton", extra="gpu", asked="it needs a GPU", timed=False,
    ),
    "relay": RuntimeEntry(
        "relay", "runtimes.relay:RelayRuntime",
        "TVM graph executor, llvm, on model.relay.json",
        runs="relay", package="xtc-tvm-python-bindings", setup="relay",
    ),
}  # fmt: skip
EXACT = tuple(name for name, entry in RUNTIMES.items() if entry.exact)
UNASKED = tuple(name for name, entry in RUNTIMES.items() if entry.unasked)
TIMED = tuple(name for name, entry in RUNTIMES.items() if entry.timed)
# What executes an ONNX file where nothing else is asked for.
ENGINE = next(name for name, entry in RUNTIMES.items() if entry.covers)
# Runtimes by what `qtool check --ort-provider` calls them.
PROVIDERS = {
    entry.provider: name for name, entry in RUNTIMES.items() if entry.provider is not None
}
# Where `qtool search` may measure latency: what it finds is to be exact where it is fast. What
# runs in an environment of its own takes a minute to compile, and there are many candidates.
SEARCHED = tuple(n for n in TIMED if n in EXACT and RUNTIMES[n].setup is None)


def runtime_entry(name: str, known: Collection[str] = RUNTIMES) -> RuntimeEntry:
    """Return the entry of runtime `name`, which is one of `known`.

    Raises:
        UserError: no such runtime; with the nearest names.
    """
    if name not in known:
        raise unknown_name("runtime", name, known)
    return RUNTIMES[name]
