"""``--target tvm``: model.so, model.json beside it and, if asked for, the readable module.

model.so is sealed (`qtool.core.sealed`): runtimes read what they need from there. model.json
says the same and more to people and tools; both are written, or neither. Several pairs of
bit-widths are the same two files (`passes.emit.tvm.pairs`), in the folder that is named.

``--device cuda`` makes the same files for a GPU (`passes.emit.tvm.cuda`), of which there need
be none here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from passes.emit.base import Described, Note, Target, pairs_folder
from qtool.core.errors import UserError

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.emit.tvm.cpu.tvm_module import TvmModule
    from passes.emit.tvm.tuning import TuneOptions

_LIBRARY, _OBJECTS = ".so", ".tar"
_CUDA = "cuda"


@dataclass(frozen=True)
class TvmTarget(Target):
    """A shared library, or an archive of object files.

    Args:
        mcpu: LLVM's name of the CPU to compile for; None for this machine's.
        tune: variants measured per kernel; None for tiles by rule.
        tune_cache: file that keeps what was found; None for the user's cache folder.
        emit_ir: file for the module as TVMScript.
        device: what runs the kernels, "cpu" or "cuda".
        arch: NVIDIA's name of the GPU to compile for.
        batch: images per call of a GPU's module; None for 1.
    """

    name = "tvm"
    title = "TVM"
    summary = "TVM Relax, compiled for a CPU or GPU: model.so, model.json (extra: tvm)"
    suffixes = (_LIBRARY, _OBJECTS)
    a_file = "model.so (qtool export --target tvm)"

    mcpu: str | None = field(default=None, metadata={
        "help": "CPU to compile for, by LLVM's name (znver4, haswell, cortex-a76); by default "
        "native, this machine's.",
        "metavar": "NAME",
    })  # fmt: skip
    tune: int | None = field(default=None, metadata={
        "help": "measure N variants of each kernel on this machine, keep the fastest.",
        "metavar": "N", "minimum": 0,
    })  # fmt: skip
    tune_cache: Path | None = field(default=None, metadata={
        "help": "file of what --tune found, read and extended.",
    })  # fmt: skip
    emit_ir: Path | None = field(default=None, metadata={
        "help": "also write the module as readable TVMScript; --output is not needed then.",
    })  # fmt: skip
    device: str = field(default="cpu", metadata={
        "help": "what runs the kernels: this CPU or --mcpu, or an NVIDIA GPU (extra: cuda).",
        "choices": ("cpu", "cuda"),
    })  # fmt: skip
    arch: str | None = field(default=None, metadata={
        "help": "GPU to compile for, by NVIDIA's name (sm_80, sm_90), with --device cuda.",
        "metavar": "NAME",
    })  # fmt: skip
    batch: int | None = field(default=None, metadata={
        "help": "images per call of a module for a GPU; 1 by default.",
        "metavar": "N", "minimum": 1,
    })  # fmt: skip

    def files(self, output: Path | None) -> list[Path]:
        """Return library or archive, its JSON, and the readable module."""
        if output is not None and output.suffix not in self.suffixes:
            raise UserError(
                f"{output}: --target {self.name} writes a shared library ({_LIBRARY}) or an "
                f"archive of object files ({_OBJECTS}), got {output.suffix or 'no suffix'!r}"
            )
        files = [] if output is None else [output, output.with_suffix(".json")]
        files += [] if self.emit_ir is None else [self.emit_ir]
        if len({path.absolute() for path in files}) < len(files):
            raise UserError(f"--emit-ir {self.emit_ir} is also what the export itself writes")
        return files

    def check(self, output: Path | None, force: bool) -> None:
        """Refuse what `Target.check` does; no TVM, CPU or linker; a damaged tuning cache."""
        super().check(output, force)
        self._require(output)

    def _require(self, output: Path | None) -> None:
        """Refuse what would fail when it is compiled."""
        from qtool.core.tvm_env import require_tvm

        self._refuse_mixed(output)
        require_tvm()
        from passes.emit.tvm.cpu_target import cpu_target
        from passes.emit.tvm.library import find_linker

        if self.device == _CUDA:
            from passes.emit.tvm.cuda.gpu_target import gpu_target

            target = gpu_target(self.arch).host
        else:
            target = cpu_target(self.mcpu)
        if output is not None and output.suffix == _LIBRARY:
            find_linker(target)
        self.tuning()

    def _refuse_mixed(self, output: Path | None) -> None:
        """Refuse options of the other device."""
        given: dict[str, object] = {"--arch": self.arch, "--batch": self.batch}
        reason = f"is read with --device {_CUDA} only; add it, or leave it out"
        if self.device == _CUDA:
            given = {"--mcpu": self.mcpu, "--tune": self.tune, "--tune-cache": self.tune_cache}
            reason = f"is for a CPU, got --device {_CUDA}; leave it out"
        for name, value in given.items():
            if value is not None:
                raise UserError(f"{name} {reason}")
        if self.device == _CUDA and output is not None and output.suffix == _OBJECTS:
            raise UserError(
                f"{output}: --device {_CUDA} writes a shared library ({_LIBRARY}), with the "
                f"GPU's code in it; got {_OBJECTS}"
            )

    def tuning(self) -> "TuneOptions | None":
        """Return how to tune, None for not at all.

        Raises:
            UserError: a damaged cache, or a cache without ``--tune``.
        """
        from passes.emit.tvm.tuning import TuneCache, TuneOptions, default_cache

        if self.tune is None:
            if self.tune_cache is not None:
                raise UserError("--tune-cache is read and written by --tune N only; add it")
            return None
        path = self.tune_cache or default_cache()
        TuneCache.load(path)
        return TuneOptions(self.tune, path)

    def write(
        self, dialect: "ir.Model", output: Path | None, note: Note | None = None
    ) -> None:
        """Compile `dialect` with TVM and write library, JSON and readable module."""
        from qtool.core.tvm_env import require_tvm

        require_tvm()
        from passes.emit.tvm.compile import compile_program, model_json
        from passes.emit.tvm.cpu.tvm_module import emit_tvm
        from passes.emit.tvm.cpu_target import cpu_target
        from qtool.core.dialect import read_program

        self.files(output)
        self._refuse_mixed(output)
        if self.device == _CUDA:
            self._write_for_gpu(dialect, output, note)
            return
        program, target, tune = read_program(dialect), cpu_target(self.mcpu), self.tuning()
        if output is None:
            module = emit_tvm(program, target, tune=tune, progress=note)
            self._write_all(None, None, module, target.to_json())
            return
        compiled = compile_program(program, target, tune=tune, suffix=output.suffix, note=note)
        content = model_json(output.name, compiled, program)
        self._write_all(output, compiled.data, compiled.module, target.to_json(), content)

    def _write_for_gpu(
        self, dialect: "ir.Model", output: Path | None, note: Note | None
    ) -> None:
        """Compile `dialect` for a GPU and write the same files."""
        from passes.emit.tvm.compile import model_json
        from passes.emit.tvm.cuda.compile import compile_for_gpu
        from passes.emit.tvm.cuda.gpu_target import gpu_target
        from passes.emit.tvm.cuda.module import emit_cuda
        from qtool.core.dialect import read_program

        program, target, batch = read_program(dialect), gpu_target(self.arch), self.batch or 1
        if output is None:
            module = emit_cuda(program, batch, target.mma)
            self._write_all(None, None, module, target.to_json())
            return
        compiled, _ = compile_for_gpu(program, target, batch, note)
        content = model_json(output.name, compiled, program)
        self._write_all(output, compiled.data, compiled.module, target.to_json(), content)

    def _write_all(
        self, output: Path | None, data: bytes | None, module: "TvmModule",
        code: Mapping[str, Any], content: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Write the library, its JSON and the readable module, all or none."""
        from passes.emit.tvm.compile import readable
        from qtool.core.files import json_bytes, write_together

        files: dict[Path, bytes] = {}
        if output is not None and data is not None:
            files |= {output: data, output.with_suffix(".json"): json_bytes(content)}
        if self.emit_ir is not None:
            files[self.emit_ir] = readable(module, code).encode()
        write_together(files)

    def pair_files(self, names: Sequence[str], output: Path | None) -> list[Path]:
        """Return the `files` of all pairs together."""
        if self.device == _CUDA:
            raise UserError(
                f"--device {_CUDA} writes one pair of bit-widths, got {len(names)}: export "
                "each with --bits"
            )
        library = self._library(output)
        files = self.files(library)
        self._require(library)
        return files

    def _library(self, output: Path | None) -> Path | None:
        """Return the file for several pairs: in the folder `output`, unless it names one."""
        if output is None and self.emit_ir is not None:
            return None
        if output is not None and output.suffix in self.suffixes:
            return output
        return pairs_folder(output) / f"model{_LIBRARY}"

    def write_pairs(
        self,
        dialects: "Mapping[str, ir.Model]",
        output: Path | None,
        note: Note,
        left_out: Mapping[str, str] = MappingProxyType({}),
    ) -> list[str]:
        """Compile one network at several pairs into one library."""
        from passes.emit.tvm.cpu.tvm_module import emit
        from passes.emit.tvm.cpu_target import cpu_target
        from passes.emit.tvm.pairs import compile_pairs, pairs_json, plan_pairs
        from qtool.core.dialect import read_program

        library, target = self._library(output), cpu_target(self.mcpu)
        programs = {pair: read_program(dialect) for pair, dialect in dialects.items()}
        networks = plan_pairs(programs, target, self.tuning(), note)
        if library is None:
            self._write_all(None, None, emit(networks), target.to_json())
            return []
        made = compile_pairs(networks, target, library.suffix, note)
        content = pairs_json(library.name, made, programs, left_out)
        compiled = made.compiled
        self._write_all(library, compiled.data, compiled.module, target.to_json(), content)
        return list(made.sentences())

    @classmethod
    def read(cls, path: Path) -> list[Described]:
        """Return what a sealed library says of its programs and their code."""
        from passes.emit.facts import describe_module
        from qtool.core.sealed import networks_of, read_seal

        networks = networks_of(read_seal(path))
        return [Described(of, describe_module(of), pair) for pair, of in networks.items()]
