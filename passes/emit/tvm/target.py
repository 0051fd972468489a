"""Integer dialect -> model.so, model.json beside it and, if asked for, the readable module.

model.so is sealed (`qtool.core.sealed`): runtimes read what they need from there. model.json
says the same and more to people and tools; both are written, or neither.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

import qtool
from passes.emit.facts import describe, describe_module
from passes.emit.tvm.tuning import TuneCache, TuneOptions, default_cache
from qtool.core.dialect import Program, read_program
from qtool.core.errors import UserError
from qtool.core.files import json_bytes, refuse_directory, refuse_existing, write_together
from qtool.core.sealed import seal
from qtool.core.tvm_env import require_tvm

if TYPE_CHECKING:
    from passes.emit.tvm.cpu.tvm_module import TvmModule
    from passes.emit.tvm.cpu_target import CpuTarget

Note = Callable[[str], None]
JSON_FORMAT = 1
_LIBRARY, _OBJECTS = ".so", ".tar"


@dataclass(frozen=True)
class TvmOptions:
    """What only the TVM target takes; field names are those of the command line.

    Args:
        mcpu: LLVM's name of the CPU to compile for; None for this machine's.
        tune: variants measured per kernel; None for tiles by rule.
        tune_cache: file that keeps what was found; None for the user's cache folder.
        emit_ir: file for the module as TVMScript.
    """

    mcpu: str | None = None
    tune: int | None = None
    tune_cache: Path | None = None
    emit_ir: Path | None = None

    def refuse_for(self, target: str) -> None:
        """Raise `UserError` if anything is set and `target` is not "tvm"."""
        if target == "tvm":
            return
        for name, value in vars(self).items():
            if value is not None:
                option = name.replace("_", "-")
                raise UserError(f"--{option} needs --target tvm, got --target {target}")

    def tuning(self) -> TuneOptions | None:
        """Return how to tune, None for not at all.

        Raises:
            UserError: a damaged cache, or a cache without ``--tune``.
        """
        if self.tune is None:
            if self.tune_cache is not None:
                raise UserError("--tune-cache is read and written by --tune N only; add it")
            return None
        path = self.tune_cache or default_cache()
        TuneCache.load(path)
        return TuneOptions(self.tune, path)


@dataclass(frozen=True)
class Compiled:
    """A program's code and what is known about it.

    Args:
        data: sealed shared library, or archive of object files.
        facts: what the seal holds.
        module: what it was compiled from.
    """

    data: bytes
    facts: dict[str, Any] = field(repr=False)
    module: "TvmModule" = field(repr=False)


def check_tvm(output: Path | None, options: TvmOptions, force: bool) -> None:
    """Raise `UserError` for what would fail after long work: before it begins.

    Args:
        output: library or archive to write, None for only the readable module.
        options: of the command line.
        force: existing files may be replaced.
    """
    for path in _written(output, options):
        refuse_existing(path, force)
        refuse_directory(path)
    require_tvm()
    from passes.emit.tvm.cpu_target import cpu_target
    from passes.emit.tvm.library import find_linker

    target = cpu_target(options.mcpu)
    if output is not None and output.suffix == _LIBRARY:
        find_linker(target)
    options.tuning()


def _written(output: Path | None, options: TvmOptions) -> list[Path]:
    """Return the files that an export writes."""
    if output is not None and output.suffix not in (_LIBRARY, _OBJECTS):
        raise UserError(
            f"{output}: --target tvm writes a shared library ({_LIBRARY}) or an archive of "
            f"object files ({_OBJECTS}), got {output.suffix or 'no suffix'!r}"
        )
    files = [] if output is None else [output, output.with_suffix(".json")]
    files += [] if options.emit_ir is None else [options.emit_ir]
    if len({path.absolute() for path in files}) < len(files):
        raise UserError(f"--emit-ir {options.emit_ir} is also what the export itself writes")
    return files


def write_tvm(
    dialect: ir.Model,
    output: Path | None,
    options: TvmOptions | None = None,
    note: Note | None = None,
) -> None:
    """Compile `dialect` with TVM and write library, JSON and readable module.

    Args:
        dialect: result of `passes.pipelines.lower` or `import_foreign`.
        output: library (.so) or archive of object files (.tar); None for neither.
        options: of the command line.
        note: is told what is going on.
    """
    require_tvm()
    from passes.emit.tvm.cpu.tvm_module import emit_tvm
    from passes.emit.tvm.cpu_target import cpu_target

    chosen, program = options or TvmOptions(), read_program(dialect)
    _written(output, chosen)
    target = cpu_target(chosen.mcpu)
    files: dict[Path, bytes] = {}
    if output is None:
        module = emit_tvm(program, target, tune=chosen.tuning(), progress=note)
    else:
        compiled = compile_program(
            program, target, tune=chosen.tuning(), suffix=output.suffix, note=note
        )
        module = compiled.module
        files[output] = compiled.data
        content = model_json(output.name, compiled, program)
        files[output.with_suffix(".json")] = json_bytes(content)
    if chosen.emit_ir is not None:
        files[chosen.emit_ir] = readable(module, target).encode()
    write_together(files)


def compile_program(
    program: Program,
    target: "CpuTarget | None" = None,
    batch: int = 1,
    tune: TuneOptions | None = None,
    suffix: str = _LIBRARY,
    note: Note | None = None,
) -> Compiled:
    """Compile `program` and seal its library.

    Args:
        program: the integer dialect.
        target: the CPU; None for this machine's.
        batch: images per call.
        tune: how to search for tiles.
        suffix: ".so", or ".tar" for object files, which have no seal.
        note: is told what is going on.
    """
    from passes.emit.tvm.cpu.tvm_module import emit_tvm
    from passes.emit.tvm.cpu_target import host_target
    from passes.emit.tvm.library import compile_library

    cpu = target or host_target()
    module = emit_tvm(program, cpu, batch, tune, note)
    data = compile_library(module.ir, cpu, suffix, note)
    facts = describe(program) | {
        "batch": batch, "tvm": metadata.version("apache-tvm"),
        "tvm_ffi": metadata.version("apache-tvm-ffi"), "cpu": cpu.to_json(),
        "module": module.facts,
    }  # fmt: skip
    return Compiled(seal(data, facts) if suffix == _LIBRARY else data, facts, module)


def readable(module: "TvmModule", target: "CpuTarget") -> str:
    """Return the module as TVMScript; weights and other large constants are left out."""
    lines = [
        f"# qtool {qtool.__version__}: {target.mcpu} ({target.isa}), {target.triple}",
        "# main: image -> logits. trace: image -> memory, in which every integer tensor has",
        "# its offset, shape and strides in bytes:",
        *(
            f"#   {name}: {at['offset']}, {tuple(at['shape'])}, {tuple(at['strides'])}"
            for name, at in module.facts["trace"].items()
        ),
        str(module.ir.script()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def model_json(name: str, compiled: Compiled, program: Program) -> dict[str, Any]:
    """Return the content of model.json (README, "model.json").

    Args:
        name: of the file beside it.
        compiled: the file's content.
        program: what it computes.
    """
    facts = compiled.facts
    shape = [facts["batch"], *facts["input_shape"]]
    classes = list(program.shapes()[program.output])
    return {
        "format": JSON_FORMAT,
        "file": name,
        "bytes": len(compiled.data),
        "sha256": hashlib.sha256(compiled.data).hexdigest(),
        "digest": facts["digest"],
        "dataset": facts["dataset"],
        "versions": {k: facts[k] for k in ("qtool", "tvm", "tvm_ffi")},
        "input": {
            "name": program.input_name, "shape": shape, "dtype": facts["input_kind"],
            "range": facts["input_range"],
        },
        "output": {
            "name": program.output_name, "shape": [facts["batch"], *classes],
            "dtype": "float32", "kind": facts["output_kind"],
            "scale": facts["output_scale"], "zero_point": facts["output_zero_point"],
        },
        "layers": {
            layer: {"weight_bits": w, "activation_bits": a, "macs": facts["layer_macs"][layer]}
            for layer, (w, a) in facts["layers"].items()
        },
        "bops": facts["bops"],
        "macs": facts["macs"],
        "weight_bytes": facts["weight_bytes"],
        **describe_module(facts),
    }  # fmt: skip
