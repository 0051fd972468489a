"""``--target relay``: model.relay.json, and beside it the module as text, model.relay.

model.relay.json is whole (`qtool.core.relay.relay_file`): runtimes read it alone. The text is
for people, and for ``tvm.relay.parse``. Both are written, or neither.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.emit.base import Described, Note, Target
from qtool.core.errors import UserError

if TYPE_CHECKING:
    import onnx_ir as ir

    from qtool.core.dialect import Program
_FILE = ".relay.json"


@dataclass(frozen=True)
class RelayTarget(Target):
    """A Relay module with its parameters.

    Args:
        mcpu: LLVM's name of the CPU to compile for; None for the machine's that runs it.
        relay_qnn: spell operators as ``qnn.*`` where Relay has them.
    """

    name = "relay"
    title = "Relay"
    summary = "TVM Relay (TVM up to 0.19): model.relay.json, model.relay (qtool setup relay)"
    suffixes = (_FILE,)
    a_file = "model.relay.json (qtool export --target relay)"

    mcpu: str | None = field(default=None, metadata={
        "help": "CPU to compile for, by LLVM's name; by default the one that runs it.",
        "metavar": "NAME",
    })  # fmt: skip
    relay_qnn: bool = field(default=False, metadata={
        "help": "write qnn.* where Relay has it, which TVM rounds in its own way.",
    })  # fmt: skip

    def files(self, output: Path | None) -> list[Path]:
        """Return the JSON file and the text beside it."""
        if output is None:
            return []
        if not output.name.endswith(self.suffixes):
            raise UserError(
                f"{output}: --target {self.name} writes a file that ends in {_FILE}, and its "
                "text beside it"
            )
        return [output, output.with_suffix("")]

    def check(self, output: Path | None, force: bool) -> None:
        """Refuse what `Target.check` does, a missing environment, and an unknown CPU."""
        super().check(output, force)
        from qtool.core.relay.environment import require_relay
        from qtool.core.relay.library import cpu_target
        from qtool.core.relay.process import Process

        require_relay()
        if self.mcpu is not None:
            with Process() as process:
                cpu_target(process, self.mcpu)

    def write(
        self, dialect: "ir.Model", output: Path | None, note: Note | None = None
    ) -> None:
        """Write JSON and text; the module is read back in both forms and compiled first."""
        from passes.emit.relay.emit import EXACT, QNN, emit
        from passes.emit.relay.parameters import parameter_bytes
        from qtool.core.dialect import read_program
        from qtool.core.files import write_together
        from qtool.core.relay.library import open_module
        from qtool.core.relay.process import Process
        from qtool.core.relay.relay_file import MAIN, TRACE, RelayFile

        program = read_program(dialect)
        made = emit(program, QNN if self.relay_qnn else EXACT)
        parameters = parameter_bytes(made.parameters)
        with Process() as process:
            texts = (made.main.encode(), made.trace.encode())
            _, modules = process.ask("emit", (*texts, parameters))
            named = dict(zip((MAIN, TRACE), modules, strict=True))
            file = RelayFile(self._facts(program), named, parameters)
            open_module(process, file, MAIN, note)
        paths = self.files(output)
        write_together(dict(zip(paths, (file.to_bytes(), texts[0]), strict=True)))

    def _facts(self, program: "Program") -> dict[str, Any]:
        """Return what the file says of its network and module."""
        from passes.emit.facts import describe
        from passes.emit.relay.text import identifier
        from qtool.core.relay.environment import VERSION

        differs = "qnn.* of TVM rounds in its own way (docs/relay.md)"
        return describe(program) | {
            "tvm": VERSION, "mcpu": self.mcpu, "input_name": identifier(program.input_name),
            "differs": differs if self.relay_qnn else None,
        }  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> list[Described]:
        """Return what the file says of its network."""
        from qtool.core.relay.relay_file import read_relay

        return [Described(dict(read_relay(path).facts))]
