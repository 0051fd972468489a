"""Files that hold the same model, and the runtimes that execute them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.emit.facts import describe, describe_module
from qtool.core.dialect import Program
from qtool.core.errors import UserError, unknown_name
from qtool.core.sealed import read_seal
from qtool.export.read import read_onnx
from runtimes import EXACT, RUNTIMES
from runtimes.base import Runtime


@dataclass
class Model:
    """The artifacts of one model.

    Args:
        facts: result of `qtool.export.export.describe`.
        program: the dialect, where an ONNX file is among the artifacts.
        onnx, library: paths of model.onnx and model.so.
        module: what the library's seal says of its code (`describe_module`).
    """

    facts: dict[str, Any]
    program: Program | None = None
    onnx: Path | None = None
    library: Path | None = None
    module: dict[str, Any] | None = None

    def path_for(self, runtime: str) -> Path | None:
        """Return the artifact that `runtime` executes."""
        return self.library if runtime == "tvm" else self.onnx


def open_models(files: Sequence[Path]) -> list[Model]:
    """Group `files` by model.

    Raises:
        UserError: unknown suffix, or a damaged file.
    """
    models: dict[str, Model] = {}
    for path in files:
        if path.suffix == ".onnx":
            program = read_onnx(path)
            facts = describe(program)
            model = models.setdefault(facts["digest"], Model(facts))
            model.program, model.onnx = program, path
        elif path.suffix == ".so":
            facts = read_seal(path)
            model = models.setdefault(facts["digest"], Model(facts))
            model.library = path
            model.module = describe_module(facts)
        else:
            raise UserError(f"{path}: unknown kind of file; expected .onnx or .so")
    return list(models.values())


def choose_runtimes(model: Model, wanted: Sequence[str] | None) -> list[str]:
    """Return the runtimes to use: those asked for, or all exact ones that have an artifact.

    Raises:
        UserError: an unknown runtime, one whose file or package is missing, or a library
            that was compiled for another CPU.
    """
    for name in wanted or ():
        if name not in RUNTIMES:
            raise unknown_name("runtime", name, RUNTIMES)
        if model.path_for(name) is None:
            kind = "model.so (qtool export --target tvm)" if name == "tvm" else "an .onnx file"
            raise UserError(f"runtime {name} needs {kind} of this model among the files")
    if "openvino" in (wanted or ()):
        from runtimes.openvino import require_openvino

        require_openvino()
    chosen = list(wanted) if wanted else [name for name in EXACT if model.path_for(name)]
    if "tvm" in chosen and model.library is not None and model.module is not None:
        from runtimes.tvm import require_loadable

        require_loadable(model.library, model.module["target"])
    return chosen


def open_runtime(model: Model, name: str) -> Runtime:
    """Load `model` into a runtime."""
    if name == "tvm" and model.library is not None:
        from runtimes.tvm import TvmRuntime

        return TvmRuntime(model.library)
    if model.onnx is None or model.program is None:
        raise UserError(f"runtime {name} needs an .onnx file")
    if name == "reference":
        from runtimes.reference import ReferenceRuntime

        return ReferenceRuntime(model.program)
    if name == "openvino":
        from runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime(model.onnx, model.facts["tensors"])
    from runtimes.ort import OrtRuntime

    return OrtRuntime(model.onnx, model.facts["tensors"])
