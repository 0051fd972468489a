"""What a target is: a kind of deployed file, and how the integer dialect becomes one.

A target is a frozen dataclass in ``passes/emit/NAME/target.py`` and a line in
`passes.emit.registry.TARGETS`. Its fields are its options: the command line derives a flag
from each of them, ``--tune-cache FILE`` from ``tune_cache``, and shows what its metadata say
(keys: `Option`). An instance is a target with its options chosen:
``TvmTarget(mcpu="haswell").write(dialect, path)``.

The command line imports every target to know its flags. So these modules import nothing heavy:
what `check`, `write` and `read` need is imported inside them.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_type_hints

from qtool.core.errors import UserError

if TYPE_CHECKING:
    import onnx_ir as ir

Note = Callable[[str], None]
# Is given the dialect graph that will be written; raises `UserError` to refuse it.
Inspect = Callable[["ir.Model"], None]


@dataclass(frozen=True)
class Described:
    """What a file of a target says of itself.

    Args:
        facts: what `passes.emit.facts.describe` says of its program, and more.
        module: what a report says of its code; None: nothing.
        pair: of bit-widths, that this is said of, where the file holds several.
    """

    facts: dict[str, Any]
    module: dict[str, Any] | None = None
    pair: str | None = None


@dataclass(frozen=True)
class Target(ABC):
    """A kind of file, its options chosen; the fields of a subclass are its options."""

    # Of ``--target`` and `TARGETS`; what begins the help of its options; one line.
    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    # How its files may end; runtimes load those that end as the first, and miss `a_file`.
    suffixes: ClassVar[tuple[str, ...]]
    a_file: ClassVar[str]

    def files(self, output: Path | None) -> list[Path]:
        """Return all files that an export to `output` writes, `output` first.

        Raises:
            UserError: a file that this target cannot write.
        """
        return [] if output is None else [output]

    def check(self, output: Path | None, force: bool) -> None:
        """Raise `UserError` for what would fail after long work: before it begins.

        Args:
            output: the file; None where an option names another one to write.
            force: existing files may be replaced.
        """
        files = self.files(output)
        if not files:
            raise UserError("missing option -o / --output: the file to write")
        refuse_unwritable(files, force)

    @abstractmethod
    def write(
        self, dialect: "ir.Model", output: Path | None, note: Note | None = None
    ) -> None:
        """Write the `files`, all or none.

        Args:
            dialect: result of `passes.pipelines.lower` or `import_foreign`.
            output: the file; None where an option names another one to write.
            note: is told what is going on.
        """

    def pair_files(self, names: Sequence[str], output: Path | None) -> list[Path]:
        """Return all files that an export at several pairs of bit-widths writes.

        Args:
            names: of the pairs, ``w4a8``.
            output: the folder that gets the files; None where none was given.

        Raises:
            UserError: this target writes one model a file, there is no folder, or what
                `check` refuses, but for existing files.
        """
        raise UserError(
            f"--target {self.name} writes one pair of bit-widths, got {len(names)}: use "
            "--target onnx, and qtool import for each of its files"
        )

    def write_pairs(
        self,
        dialects: "Mapping[str, ir.Model]",
        output: Path | None,
        note: Note,
        left_out: Mapping[str, str] = MappingProxyType({}),
    ) -> list[str]:
        """Write one network at several pairs, the `pair_files`, all or none.

        Args:
            dialects: results of `passes.pipelines.lower` by the pairs' names.
            output: as `pair_files` has it.
            note: is told what is going on.
            left_out: why other pairs are not written, by their names.

        Returns:
            Sentences about what was written.
        """
        raise NotImplementedError

    @classmethod
    def read(cls, path: Path) -> Sequence[Described]:
        """Return what the file `path` of this target says of itself, of each network in it.

        Nothing: it is the program, which `qtool.export.read` reads.

        Raises:
            UserError: missing or damaged.
        """
        return []


@dataclass(frozen=True)
class Option:
    """An option of a target, as the command line shows it: a field and its metadata.

    Args:
        name: of the field.
        kind: type of its value.
        default: value where it is not given.
        help: one line, with a full stop.
        metavar: what stands for the value; None for its type.
        choices: all values that there are; empty for any.
        minimum: the smallest number; None for any.
    """

    name: str
    kind: type
    default: Any
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    minimum: int | None = None

    @property
    def flag(self) -> str:
        """``--tune-cache``."""
        return f"--{self.name.replace('_', '-')}"


def options_of(target: type[Target]) -> dict[str, Option]:
    """Return the options of a target by name, in order."""
    hints = get_type_hints(target)
    return {
        field.name: Option(
            field.name, _kind(hints[field.name]), field.default, **field.metadata
        )
        for field in dataclasses.fields(target)
    }


def _kind(hint: Any) -> type:
    """Return `X` of ``X`` or ``X | None``."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    (kind,) = kinds
    found: type = kind
    return found


def pairs_folder(output: Path | None) -> Path:
    """Return the folder that several pairs are to be written to.

    Raises:
        UserError: there is none, or a file of its name.
    """
    if output is None:
        raise UserError("missing option -o / --output: the folder to write to")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; several pairs need a folder")
    return output


def refuse_unwritable(files: Sequence[Path], force: bool) -> None:
    """Raise `UserError` for files that exist and may not be replaced, and for folders."""
    from qtool.core.files import refuse_directory, refuse_existing

    for path in files:
        refuse_existing(path, force)
        refuse_directory(path)
