"""Files that hold the same model, and the runtimes that execute them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from passes.emit.base import Target
from passes.emit.facts import describe
from passes.emit.onnx.shared_file import shared_file
from passes.emit.registry import TARGETS, target_of
from qtool.core.dialect import Program
from qtool.core.errors import UserError
from qtool.export.read import read_onnx
from runtimes.base import Artifact
from runtimes.registry import RUNTIMES, UNASKED, runtime_entry


@dataclass
class Model:
    """The artifacts of one model.

    Args:
        facts: result of `passes.emit.facts.describe`, as the first file has it.
        artifacts: its files by target.
    """

    facts: Mapping[str, Any]
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    def artifact(self, runtime: str) -> Artifact | None:
        """Return what `runtime` executes."""
        return self.artifacts.get(RUNTIMES[runtime].runs)

    @property
    def program(self) -> Program | None:
        """The dialect, where a file that is the program itself is among the artifacts."""
        return next((a.program for a in self.ordered if a.program is not None), None)

    @property
    def ordered(self) -> list[Artifact]:
        """The artifacts in the order of the targets."""
        return [self.artifacts[name] for name in TARGETS if name in self.artifacts]


def suffixes() -> tuple[str, ...]:
    """Return how the names of files end that runtimes execute."""
    kinds = (TARGETS[entry.runs] for entry in RUNTIMES.values())
    return tuple(dict.fromkeys(kind.suffixes[0] for kind in kinds))


def open_models(files: Sequence[Path], pairs: str | None = None) -> list[Model]:
    """Group `files` by model; a file of several pairs of bit-widths holds as many.

    Args:
        files: artifacts.
        pairs: which of several, such as ``w4a8,w2a2``; None for all.

    Raises:
        UserError: unknown suffix, a damaged file, or a pair that is not there.
    """
    models: dict[str, Model] = {}
    found: list[Artifact] = []
    for path in files:
        target = target_of(path)
        if target is None or not path.name.endswith(suffixes()):
            kinds = " or ".join(suffixes())
            raise UserError(f"{path}: unknown kind of file; expected {kinds}")
        for artifact in _artifacts(path, target):
            found.append(artifact)
            if pairs is None or artifact.pair is None or artifact.pair in _parts(pairs):
                facts = artifact.facts
                model = models.setdefault(facts["digest"], Model(facts))
                _require_one(model.artifacts.get(target.name), artifact)
                model.artifacts[target.name] = artifact
    _require_pairs(found, pairs)
    return list(models.values())


def _artifacts(path: Path, target: type[Target]) -> list[Artifact]:
    """Return what is in a file."""
    described = target.read(path)
    if described:
        return [Artifact(path, of.facts, module=of.module, pair=of.pair) for of in described]
    program = read_onnx(path)
    return [Artifact(path, describe(program), program)]


def _require_one(known: Artifact | None, other: Artifact) -> None:
    """Refuse a second file of one target that holds the same model: one would be unseen."""
    if known is not None and known.path.absolute() != other.path.absolute():
        raise UserError(
            f"{known.name} and {other.name} hold the same model for the same runtimes: check "
            "one of them at a time"
        )


def _parts(pairs: str) -> list[str]:
    return [part.strip().lower() for part in pairs.split(",")]


def _require_pairs(found: Sequence[Artifact], pairs: str | None) -> None:
    """Refuse `pairs` of which no file has one."""
    known = list(dict.fromkeys(a.pair for a in found if a.pair is not None))
    if pairs is not None and not known:
        files = ", ".join(str(artifact.path) for artifact in found)
        raise UserError(f"--bits {pairs!r} names pairs of a file of several, not {files}")
    for part in () if pairs is None else _parts(pairs):
        if part not in known:
            raise UserError(f"--bits {pairs!r}: {part!r} is not among {', '.join(known)}")


def file_bytes(artifact: Artifact) -> int:
    """Return the bytes of a file, with those of the constants that it shares with others."""
    program = artifact.program
    beside = None if program is None else shared_file(program.metadata)
    files = (
        [artifact.path] if beside is None else [artifact.path, artifact.path.parent / beside]
    )
    return sum(path.stat().st_size for path in files)


def choose_runtimes(
    model: Model, wanted: Sequence[str] | None, beside: Sequence[str] = ()
) -> dict[str, Artifact]:
    """Return what to use: runtimes that were asked for, or `UNASKED`, and their files.

    Args:
        model: what they execute.
        wanted: names of runtimes; None for `UNASKED`.
        beside: names of others.

    Raises:
        UserError: an unknown runtime, one whose file or package is missing, or code that was
            compiled for another CPU.
    """
    chosen: dict[str, Artifact] = {}
    for name in [*(wanted or UNASKED), *beside]:
        entry, artifact = runtime_entry(name), model.artifact(name)
        if artifact is not None:
            chosen[name] = artifact
        elif wanted or name in beside:
            needed = TARGETS[entry.runs].a_file
            raise UserError(f"runtime {name} needs {needed} of this model among the files")
    if not chosen:
        paths = ", ".join(str(artifact.path) for artifact in model.ordered)
        raise UserError(f"no exact runtime executes {paths}; name others with --runtime")
    for name, artifact in chosen.items():
        RUNTIMES[name].require(artifact)
    return chosen
