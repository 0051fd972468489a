"""A target and a runtime that qtool does not have: what one folder of each would hold.

A toy file is JSON: what the program says of itself, and the ONNX file that computes it.
"""

import base64
import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Self

import onnx_ir as ir

from passes.emit.base import Described, Note, Target
from passes.emit.facts import describe
from passes.emit.onnx.target import OnnxTarget
from qtool.core.dialect import read_program
from qtool.core.errors import UserError
from qtool.core.files import write_bytes
from runtimes.base import Artifact, Codes, Floats, Inputs
from runtimes.ort import OrtRuntime
from runtimes.registry import RuntimeEntry


@dataclass(frozen=True)
class ToyTarget(Target):
    name = "toy"
    title = "Toy"
    summary = "a target of the tests"
    suffixes = (".toy.json", ".toy")
    a_file = "a .toy.json file"

    mcpu: str | None = field(default=None, metadata={"help": "CPU.", "metavar": "NAME"})
    quick: bool = field(default=False, metadata={"help": "be quick."})
    rounds: int = field(default=3, metadata={"help": "N of them.", "minimum": 1})

    def write(self, dialect: ir.Model, output: Path | None, note: Note | None = None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            OnnxTarget("qop").write(dialect, path)
            code = base64.b64encode(path.read_bytes()).decode()
        facts = describe(read_program(dialect))
        for path in self.files(output):
            write_bytes(path, json.dumps({"facts": facts, "code": code}).encode())

    @classmethod
    def read(cls, path: Path) -> list[Described]:
        return [Described(json.loads(path.read_text())["facts"])]


class ToyRuntime:
    wrong = 0  # codes of every tensor that it gets wrong

    def __init__(self, path: Path, tensors: list[str]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        onnx = Path(self.folder.name) / "m.onnx"
        onnx.write_bytes(base64.b64decode(json.loads(path.read_text())["code"]))
        self.ort = OrtRuntime(onnx, tensors)

    @classmethod
    def require(cls, artifact: Artifact | None) -> None:
        try:
            metadata.version("toy-engine")
        except metadata.PackageNotFoundError:
            raise UserError("runtime toy needs toy-engine, not installed") from None

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        return cls(artifact.path, artifact.tensors)

    def run(self, x: Inputs) -> Floats:
        return self.ort.run(x)

    def intermediates(self, x: Inputs) -> dict[str, Codes]:
        found = self.ort.intermediates(x)
        for codes in found.values():
            codes.reshape(-1)[: self.wrong] ^= 1
        return found

    def float_ops(self) -> Counter[str]:
        return Counter()


TOY = RuntimeEntry(
    "toy", "toy:ToyRuntime", "a runtime of the tests", runs="toy", package="toy-engine",
    extra="toys", timed=False,
)  # fmt: skip
