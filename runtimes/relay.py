"""TVM's graph executor on a Relay module that `qtool export --target relay` made.

It runs in a process of Relay's own environment (`qtool.core.relay`); what goes there and comes
back are arrays.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Self

import numpy as np

from qtool.core.errors import UserError
from qtool.core.relay.environment import require_relay
from qtool.core.relay.library import cpu_target, open_module
from qtool.core.relay.process import Process
from qtool.core.relay.relay_file import MAIN, TRACE, read_relay
from qtool.core.relay.worker import array_of, described
from runtimes.base import Artifact, Codes, Floats, Inputs


class RelayRuntime:
    """A model.relay.json, compiled for its CPU and called with one image at a time.

    Args:
        path: the file. It is compiled and executed: only open files you trust.
        threads: that TVM may use.

    Raises:
        UserError: no environment; a damaged file; a CPU that this machine is not.
    """

    @classmethod
    def require(cls, artifact: Artifact | None) -> None:
        """Refuse a machine without Relay's environment, and files for another CPU."""
        require_relay()
        if artifact is not None and artifact.facts.get("mcpu"):
            with Process() as process:
                cpu_target(process, artifact.facts["mcpu"])

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        """Compile or load the module."""
        return cls(artifact.path, threads)

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._path, self._file, self._threads = path, read_relay(path), threads
        self._main = Process(threads)
        self._floats = open_module(self._main, self._file, MAIN)

    def run(self, x: Inputs) -> Floats:
        """Return the float output of every image."""
        (outputs,) = self._call(self._main, x)
        floats: Floats = outputs
        return floats

    def intermediates(self, x: Inputs) -> dict[str, Codes]:
        """Return every integer tensor by name, in execution order.

        Of the same operators in a module of its own, whose results they all are.
        """
        with Process(self._threads) as process:
            open_module(process, self._file, TRACE)
            found = self._call(process, x)
        names = self._file.facts["tensors"]
        if len(names) != len(found):
            raise UserError(
                f"model {self._path}: {len(names)} tensors are named, {len(found)} computed: "
                "damaged"
            )
        return dict(zip(names, found, strict=True))

    def float_ops(self) -> Counter[str]:
        """Count kernels between input and output that write floats."""
        return Counter(self._floats)

    def times(self, x: Inputs, warmup_s: float, measure_s: float) -> list[float]:
        """Return seconds of one inference after the other, measured in the process itself."""
        answer, _ = self._ask(self._main, "time", x, warmup_s=warmup_s, measure_s=measure_s)
        return list(answer["times"])

    def _call(self, process: Process, x: Inputs) -> list[Any]:
        answer, blobs = self._ask(process, "run", x)
        return [array_of(meta, b) for meta, b in zip(answer["arrays"], blobs, strict=True)]

    def _ask(self, process: Process, do: str, x: Inputs, **more: Any) -> tuple[Any, Any]:
        facts = self._file.facts
        wanted = (tuple(facts["input_shape"]), facts["input_kind"])
        if not len(x) or (x.shape[1:], str(x.dtype)) != wanted:
            shape = "x".join(map(str, wanted[0]))
            raise UserError(
                f"module was compiled for images of {shape} {wanted[1]}, got {len(x)} of "
                f"{'x'.join(map(str, x.shape[1:]))} {x.dtype}"
            )
        given = np.ascontiguousarray(x)
        header = {"array": described(given), "input": facts["input_name"], **more}
        return process.ask(do, [given.tobytes()], **header)
