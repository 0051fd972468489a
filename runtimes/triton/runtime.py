"""The integer dialect in Triton kernels (docs/triton.md)."""

from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from qtool.core.dialect import Program
from qtool.core.errors import UserError
from runtimes.base import Artifact, Codes, Floats, Inputs
from runtimes.triton.device import Device, open_device, require_triton

if TYPE_CHECKING:
    from runtimes.triton.graph import Session
    from runtimes.triton.plan import Constants


class TritonRuntime:
    """A program on a GPU, or in Triton's interpreter.

    What is planned for a batch size is kept until another one comes.

    Args:
        program: what is executed.
        device: where; what this process has, without it.

    Raises:
        UserError: no Triton, no GPU, a float island.
    """

    @classmethod
    def require(cls, artifact: Artifact | None) -> None:
        """Refuse a machine without Triton, or without anything that runs its kernels."""
        require_triton()

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        """Execute the program of an ONNX file; it takes no threads."""
        if artifact.program is None:
            raise UserError(f"{artifact.path}: runtime triton needs the program of the file")
        return cls(artifact.program)

    def __init__(self, program: Program, device: Device | None = None) -> None:
        self.program = program
        self._device = device or open_device()
        self._constants: Constants = {}
        self._session: Session | None = None

    @property
    def device(self) -> str:
        """The GPU, or that kernels are interpreted."""
        return self._device.text

    def run(self, x: Inputs) -> Floats:
        """Return the float output."""
        from runtimes.triton.graph import Session

        if self._session is None or self._session.batch != len(x):
            self._session = None  # its memory is free before other is taken
            self._session = Session(self.program, len(x), self._device, self._constants)
        return self._session.run(x)

    def intermediates(self, x: Inputs) -> dict[str, Codes]:
        """Return every integer tensor, of launches that have memory of their own each."""
        import torch

        from runtimes.triton.operators import make_plan
        from runtimes.triton.window import SHIFT

        plan, _ = make_plan(self.program, len(x), self._device, self._constants, keep=True)
        plan.input.copy_(torch.from_numpy(x))
        plan.run()

        def codes(name: str) -> Any:
            return (plan.tensors[name].cpu().numpy().astype(np.int16) + SHIFT).astype(np.uint8)

        return {name: codes(name) for name in self.program.tensors()}

    def float_ops(self) -> Counter[str]:
        """There are none: islands are refused."""
        return Counter()
