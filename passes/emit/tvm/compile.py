"""A program -> the native code of one CPU, sealed, and what model.json says of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import qtool
from passes.emit.base import Note
from passes.emit.facts import describe, describe_module
from passes.emit.tvm.cpu.tvm_module import TvmModule, emit_tvm
from passes.emit.tvm.cpu_target import CpuTarget, host_target
from passes.emit.tvm.library import LIBRARY, compile_library
from passes.emit.tvm.tuning import TuneOptions
from qtool.core.dialect import Program
from qtool.core.sealed import function_names, seal

JSON_FORMAT = 1


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
    module: TvmModule = field(repr=False)


def compile_program(
    program: Program,
    target: CpuTarget | None = None,
    batch: int = 1,
    tune: TuneOptions | None = None,
    suffix: str = LIBRARY,
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
    cpu = target or host_target()
    module = emit_tvm(program, cpu, batch, tune, note)
    facts = describe(program) | described_code(cpu, batch) | {"module": module.facts}
    return sealed_code(module, facts, cpu, suffix, note)


def described_code(target: CpuTarget, batch: int) -> dict[str, Any]:
    """Return what a seal says of any code, as JSON values."""
    return {
        "batch": batch, "tvm": metadata.version("apache-tvm"),
        "tvm_ffi": metadata.version("apache-tvm-ffi"), "cpu": target.to_json(),
    }  # fmt: skip


def sealed_code(
    module: TvmModule, facts: dict[str, Any], target: CpuTarget, suffix: str,
    note: Note | None, strip: bool = False,
) -> Compiled:  # fmt: skip
    """Compile `module`; a library gets a seal with `facts`."""
    data = compile_library(module.ir, target, suffix, note, strip)
    return Compiled(seal(data, facts) if suffix == LIBRARY else data, facts, module)


def readable(module: TvmModule, target: Mapping[str, Any]) -> str:
    """Return the module as TVMScript; weights and other large constants are left out.

    Args:
        module: the module.
        target: what a seal holds of the machine that it is for.
    """
    lines = [f"# qtool {qtool.__version__}: {{mcpu}} ({{isa}}), {{triple}}".format(**target)]
    for pair, facts in module.networks.items():
        run, trace = function_names(pair)
        lines += [
            f"# {run}: image -> logits. {trace}: image -> memory, in which every integer "
            "tensor has\n# its offset, shape and strides in bytes:",
            *(
                f"#   {name}: {at['offset']}, {tuple(at['shape'])}, {tuple(at['strides'])}"
                for name, at in facts["trace"].items()
            ),
        ]
    return "\n".join([*lines, str(module.ir.script())]).rstrip() + "\n"


def model_json(name: str, compiled: Compiled, program: Program) -> dict[str, Any]:
    """Return the content of model.json (README, "model.json").

    Args:
        name: of the file beside it.
        compiled: the file's content.
        program: what it computes.
    """
    facts = compiled.facts
    return {
        **file_json(name, compiled),
        "digest": facts["digest"],
        "dataset": facts["dataset"],
        "versions": versions_json(facts),
        **network_json(facts, program),
    }


def file_json(name: str, compiled: Compiled) -> dict[str, Any]:
    """Return what model.json says of the file beside it, which is called `name`."""
    return {
        "format": JSON_FORMAT,
        "file": name,
        "bytes": len(compiled.data),
        "sha256": hashlib.sha256(compiled.data).hexdigest(),
    }


def versions_json(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of what made the code."""
    return {name: facts[name] for name in ("qtool", "tvm", "tvm_ffi")}


def network_json(facts: Mapping[str, Any], program: Program) -> dict[str, Any]:
    """Return what model.json says of a network.

    Args:
        facts: what a seal holds of it (`qtool.core.sealed.network_facts`).
        program: what it computes.
    """
    shape = [facts["batch"], *facts["input_shape"]]
    classes = list(program.shapes()[program.output])
    return {
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
        **({"zero_shot": told} if (told := facts.get("zero_shot")) else {}),
        **describe_module(facts),
    }  # fmt: skip
