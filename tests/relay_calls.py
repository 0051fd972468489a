"""Integers of programs in Relay, in one worker; needs Relay's environment."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from passes.emit.relay.emit import EXACT, Form, emit
from passes.emit.relay.parameters import parameter_bytes
from passes.emit.relay.text import identifier
from qtool.core.dialect import Program
from qtool.core.relay.library import cpu_target
from qtool.core.relay.process import Process
from qtool.core.relay.worker import array_of, described
from runtimes.compare import Parity
from runtimes.reference import ReferenceRuntime


class Relay:
    """A program, emitted; built when it is asked for something."""

    def __init__(self, process: Process, program: Program, form: Form = EXACT) -> None:
        self.process, self.program = process, program
        made = emit(program, form)
        self.parameters = parameter_bytes(made.parameters)
        texts = (made.main.encode(), made.trace.encode())
        _, (self.main, self.trace) = process.ask("emit", (*texts, self.parameters))

    def run(self, x: Any, mcpu: str | None = None) -> Any:
        """The output."""
        return self._call(self.main, x, mcpu)[0]

    def intermediates(self, x: Any, mcpu: str | None = None) -> Mapping[str, Any]:
        """Every integer tensor."""
        found = self._call(self.trace, x, mcpu)
        return dict(zip(self.program.tensors(), found, strict=True))

    def _call(self, module: bytes, x: Any, mcpu: str | None) -> list[Any]:
        target = cpu_target(self.process, mcpu)
        self.process.ask("build", (module, self.parameters), target=target)
        header = {"array": described(x), "input": identifier(self.program.input_name)}
        answer, blobs = self.process.ask("run", [np.ascontiguousarray(x).tobytes()], **header)
        return [array_of(m, blob) for m, blob in zip(answer["arrays"], blobs, strict=True)]


def parity(made: Relay, x: Any, mcpu: str | None = None) -> Parity:
    """Compare every integer with the reference's."""
    found = Parity()
    reference = ReferenceRuntime(made.program)
    found.add_all(reference.intermediates(x), dict(made.intermediates(x, mcpu)))
    return found


def exact(made: Relay, x: Any, mcpu: str | None = None, output: bool = True) -> None:
    """Fail unless all integers, and with `output` all floats, are the reference's."""
    found = parity(made, x, mcpu)
    assert found.compared > 0 and found.mismatched == 0, found.first_divergence
    if output:
        assert np.array_equal(made.run(x, mcpu), ReferenceRuntime(made.program).run(x))
