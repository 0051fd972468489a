"""A network that is to be part of a module: its plan, and where tensors lie in memory."""

from passes.emit.tvm.cpu.plan.memory import apart, arrange
from passes.emit.tvm.cpu.plan.plan import Plan
from qtool.core.dialect import Program


class Network:
    """A program, its plan, and where tensors lie in memory.

    Args:
        program: the integer dialect.
        plan: of the program.
    """

    def __init__(self, program: Program, plan: Plan) -> None:
        self.program, self.plan = program, plan
        lives = plan.lives()
        self.arena, self.arena_bytes = arrange(lives)
        self.apart, self.trace_bytes = apart(lives)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of an image's output."""
        return self.program.shapes()[self.plan.result]
