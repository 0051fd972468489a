"""One network at several pairs of bit-widths: a small ONNX file each, and their weights once.

    weights.bin    constants that several of them hold (`passes.emit.onnx.shared_file`)
    w4a8.onnx      a graph with what is its own: scales, biases, clips
    index.json     what there is: `PairFiles.index`

Weights that nest are stored at their widest, and tables make the others of them when a graph
is loaded (`passes.packing.nesting`); what does not nest is stored at each width. In the graphs
nothing but inputs, outputs and integer tensors keeps its name.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import onnx_ir as ir

import qtool
from passes.emit.facts import describe
from passes.emit.onnx.onnx_file import file_model
from passes.emit.onnx.packed import weight_width
from passes.emit.onnx.shared_file import facts_of, split
from passes.packing.nesting import Nested, Width, nest
from qtool.core.dialect import read_program
from qtool.core.files import json_bytes

INDEX, WEIGHTS = "index.json", "weights.bin"
INDEX_FORMAT = 1
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class PairFiles:
    """What is to be written into one folder.

    Args:
        content: by name.
        index: what index.json says.
    """

    content: Mapping[str, bytes]
    index: Mapping[str, Any]

    def files(self, folder: Path) -> dict[Path, bytes]:
        """Return the content of every file in `folder`."""
        known = {**self.content, INDEX: json_bytes(self.index)}
        return {folder / name: data for name, data in known.items()}

    def sentences(self) -> Iterator[str]:
        """Say how large the files are, and what does not nest."""
        index, alone = self.index, self.index["largest_alone"]
        graphs = index["total_bytes"] - index["shared"]["bytes"]
        yield (
            f"{len(index['pairs'])} pairs in {index['total_bytes']:,} bytes, "
            f"{index['ratio']:.2f} x {alone['pair']} alone: {index['shared']['bytes']:,} "
            f"shared, {graphs:,} of graphs"
        )
        apart = index["stored_apart"]
        if apart:
            more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
            yield (
                f"the codes of layer {apart[0]}{more} do not nest: those of fewer bits are no "
                "function of the widest, and stored at each width (quantizers "
                "double_rounding, sat and sat_centered nest)"
            )


def file_names(pairs: Iterable[str]) -> list[str]:
    """Return the names of the files for `pairs`, in the order of `PairFiles`."""
    return [*(f"{name}.onnx" for name in pairs), WEIGHTS, INDEX]


def pair_files(
    dialects: Mapping[str, ir.Model],
    form: str,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> PairFiles:
    """Return the files of a network at several pairs.

    Args:
        dialects: results of `passes.pipelines.lower` by the pairs' names, the same network.
        form: a key of `passes.emit.onnx.onnx_file.FORMS`.
        left_out: why other pairs have no file, by their names.
    """
    held = _held(dialects)
    facts = {name: describe(read_program(dialect)) for name, dialect in dialects.items()}
    models = {}
    for name, dialect in dialects.items():
        models[name] = file_model(dialect, form, held[name])
        _shorten(models[name], facts[name]["tensors"])
    shared = split(models.values(), WEIGHTS)
    graphs = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
    content = {**graphs, WEIGHTS: shared}
    largest = max(facts, key=lambda name: (facts[name]["weight_bytes"], facts[name]["bops"]))
    alone = len(file_model(dialects[largest], form).SerializeToString())
    total = sum(map(len, content.values()))
    apart = {layer for of in held.values() for layer, how in of.items() if not how.nests}
    return PairFiles(content, {
        "format": INDEX_FORMAT, "qtool": qtool.__version__,
        "shared": facts_of(WEIGHTS, shared),
        "pairs": {name: _entry(name, facts[name], graphs[f"{name}.onnx"]) for name in models},
        "total_bytes": total, "largest_alone": {"pair": largest, "bytes": alone},
        "ratio": round(total / alone, 4),
        "stored_apart": [layer for layer in next(iter(held.values())) if layer in apart],
        "left_out": dict(left_out),
    })  # fmt: skip


def _entry(name: str, facts: Mapping[str, Any], graph: bytes) -> dict[str, Any]:
    """Return what the index says of a pair."""
    return {
        **facts_of(f"{name}.onnx", graph), "bops": facts["bops"], "digest": facts["digest"],
    }  # fmt: skip


def _held(dialects: Mapping[str, ir.Model]) -> dict[str, dict[str, Nested]]:
    """Return how the weights of every pair are held, by layer."""
    widths: dict[str, dict[str, Width]] = {}
    for name, dialect in dialects.items():
        for node in dialect.graph:
            width = weight_width(node)
            if width is not None:
                widths.setdefault(str(node.name), {})[name] = width
    found: dict[str, dict[str, Nested]] = {name: {} for name in dialects}
    for layer, nested in nest({k: _counted(v) for k, v in widths.items()}).items():
        for name, how in zip(widths[layer], nested, strict=True):
            found[name][layer] = how
    return found


def _counted(widths: Mapping[str, Width]) -> list[Width]:
    """Return the widths of a layer, each with the number of files that have these codes."""
    digests = [hashlib.sha256(width.codes.tobytes()).digest() for width in widths.values()]
    files = Counter(digests)
    return [
        replace(width, files=files[digest])
        for width, digest in zip(widths.values(), digests, strict=True)
    ]


def _shorten(model: onnx.ModelProto, tensors: Collection[str]) -> None:
    """Give short names to what no reader knows by name."""
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    kept |= {"", *tensors}
    names: dict[str, str] = {}
    fresh = _names(kept)
    for tensor in graph.initializer:
        tensor.name = names.setdefault(tensor.name, next(fresh))
    for node in graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                if name not in kept:
                    values[index] = names.get(name) or names.setdefault(name, next(fresh))


def _names(taken: Collection[str]) -> Iterator[str]:
    """Yield a, b, ..., 10, 11, ... but for those that are taken."""
    number = 10
    while True:
        name, rest = "", number
        while rest:
            name, rest = _DIGITS[rest % len(_DIGITS)] + name, rest // len(_DIGITS)
        if name not in taken:
            yield name
        number += 1
