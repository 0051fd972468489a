"""``--target onnx``: an ONNX file, which holds the program itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from passes.emit.base import Note, Target, pairs_folder

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class OnnxTarget(Target):
    """An ONNX file.

    Args:
        format: a key of `passes.emit.onnx.onnx_file.FORMS`.
    """

    name = "onnx"
    title = "ONNX"
    summary = "ONNX file of DQ/Q pairs or QLinear operators: model.onnx"
    suffixes = (".onnx",)
    a_file = "an .onnx file"

    format: str = field(default="qdq", metadata={
        "help": "DQ/Q pairs, which every runtime reads, or QLinear operators.",
        "choices": ("qdq", "qop"),
    })  # fmt: skip

    def write(
        self, dialect: "ir.Model", output: Path | None, note: Note | None = None
    ) -> None:
        """Write `dialect` as an ONNX file."""
        from passes.emit.onnx.onnx_file import write_onnx

        for path in self.files(output):
            write_onnx(dialect, path, self.format)

    def pair_files(self, names: Sequence[str], output: Path | None) -> list[Path]:
        """Return a graph for each pair, their weights, and the index."""
        from passes.emit.onnx.pair_files import file_names

        folder = pairs_folder(output)
        return [folder / name for name in file_names(names)]

    def write_pairs(
        self,
        dialects: "Mapping[str, ir.Model]",
        output: Path | None,
        note: Note,
        left_out: Mapping[str, str] = MappingProxyType({}),
    ) -> list[str]:
        """Write a graph a pair, their weights once, and the index.

        Graphs that an earlier index lists would read the new weights: they are removed.
        """
        from passes.emit.onnx.earlier_graphs import earlier_graphs
        from passes.emit.onnx.pair_files import INDEX, pair_files
        from qtool.core.files import write_together

        made = pair_files(dialects, self.format, left_out)
        folder = pairs_folder(output)
        earlier = earlier_graphs(folder / INDEX, made.content)
        write_together(made.files(folder))
        for path in earlier:
            path.unlink(missing_ok=True)
        gone = [f"{path} is removed: its weights were replaced" for path in earlier]
        return [*made.sentences(), *gone]
