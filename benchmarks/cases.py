"""Rows of the latency table: which file runs in which engine, and how files are written."""

import contextlib
import io
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from networks import COMPILED, Bits, write_float, write_library, write_qtool, write_static

from runtimes.registry import runtime_entry

ORT_INT8, OPENVINO_INT8 = "ORT int8", "OpenVINO int8"


@dataclass(frozen=True)
class Case:
    """A row.

    Args:
        engine: name in engine.py; also a group.
        file: name of the file, as `write_files` returns it.
        groups: sets of rows that it belongs to.
        twin: the row of the same network in 8 bits, where this one has fewer.
    """

    engine: str
    file: str
    groups: tuple[str, ...] = ()
    twin: str | None = None


_ALWAYS, _QDQ, _FOUR = "default", "qdq", "4bit"

# A new engine is a line here and one in engine.py.
CASES = {
    ORT_INT8: Case("ort", "static.qdq", (_ALWAYS, _QDQ, _FOUR)),
    "ORT int8 operators": Case("ort", "static.qop", (_QDQ,)),
    "ORT float": Case("ort", "float", (_ALWAYS, _QDQ)),
    OPENVINO_INT8: Case("openvino", "static.qdq", (_ALWAYS, _FOUR)),
    "OpenVINO default": Case("openvino", "float", (_ALWAYS,)),
    "OpenVINO qtool W8A8": Case("openvino", "w8a8.qdq", (_ALWAYS, _FOUR)),
    "OpenVINO qtool W4A4": Case("openvino", "mixed.qdq", (_FOUR,), "OpenVINO qtool W8A8"),
    "ORT qtool W8A8": Case("ort", "w8a8.qdq", (_ALWAYS, _QDQ, _FOUR)),
    "ORT qtool W8A8 operators": Case("ort", "w8a8.qop", (_QDQ,)),
    "ORT qtool W4A4": Case("ort", "mixed.qdq", (_FOUR,), "ORT qtool W8A8"),
    "ORT qtool W4A4 all 4": Case("ort", "w4a4g4.qdq", (_QDQ,), "ORT qtool W8A8"),
    "ORT qtool W4A4 glue 8": Case("ort", "w4a4g8.qdq", (_QDQ,), "ORT qtool W8A8"),
    "ORT qtool W8A4 all 4": Case("ort", "w8a4g4.qdq", (_QDQ,), "ORT qtool W8A8"),
    "TVM W8A8": Case("tvm", "w8a8.so", (_ALWAYS, _FOUR)),
    "TVM W4A4": Case("tvm", "mixed.so", (_ALWAYS, _FOUR), "TVM W8A8"),
    "TVM W4A4 all 4": Case("tvm", "w4a4g4.so", (_FOUR,), "TVM W8A8"),
    "Relay W8A8": Case("relay", "w8a8.relay.json", ("relay",)),
    "Relay qnn W8A8": Case("relay", "w8a8.qnn.relay.json", ("relay",)),
    "TVM quantize_static": Case("tvm", "static.so", ("foreign",)),
}
# "mixed" is what a search under a budget finds most: inner layers at 4 bits, the first and the
# last one and what is between layers at 8.
QTOOL = {
    "w8a8": Bits(8, 8, 8), "mixed": Bits(4, 4, 8, ends=8), "w4a4g4": Bits(4, 4, 4),
    "w4a4g8": Bits(4, 4, 8), "w8a4g4": Bits(8, 4, 4),
}  # fmt: skip


def select(text: str) -> dict[str, Case]:
    """Return the rows that `text` names: rows, groups and engines, separated by commas.

    Raises:
        ValueError: an unknown name; says which there are.
        UserError: an engine that is not installed.
    """
    wanted = {part.strip().casefold() for part in text.split(",")}
    names = {
        name: {name.casefold(), case.engine, "all", *case.groups}
        for name, case in CASES.items()
    }
    unknown = wanted - set().union(*names.values())
    if unknown:
        groups = {group for case in CASES.values() for group in (case.engine, *case.groups)}
        raise ValueError(
            f"{', '.join(sorted(unknown))}: unknown; groups: {', '.join(sorted(groups))}, "
            f"all; rows: {', '.join(CASES)}"
        )
    chosen = {name: case for name, case in CASES.items() if wanted & names[name]}
    for engine in {case.engine for case in chosen.values()}:
        runtime_entry(engine).require()
    return chosen


def write_files(
    net: str, size: int, folder: Path, names: Iterable[str], keep: bool
) -> dict[str, Path]:
    """Write the files `names` of network `net`; return them by name.

    ONNX files that are in `folder` already are used again. Libraries are not, unless `keep`:
    they depend on the compiler as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = sorted(set(names))
    # What TVM runs is made from the file that ONNX Runtime runs.
    sources = {
        name: f"{name.partition('.')[0]}.qdq" for name in wanted if name.endswith(COMPILED)
    }
    files = {
        name: folder / f"{net}-{size}.{name}{'' if name in sources else '.onnx'}"
        for name in {*wanted, *sources.values(), "float"}
    }
    with contextlib.redirect_stdout(io.StringIO()):
        _write_onnx(net, size, files)
    for name, source in sources.items():
        if not (keep and files[name].exists()):
            began = time.perf_counter()
            write_library(files[source], source == "static.qdq", files[name])
            print(f"{files[name].name}: {time.perf_counter() - began:.1f} s", flush=True)
    return {name: files[name] for name in wanted}


def _write_onnx(net: str, size: int, files: dict[str, Path]) -> None:
    missing = {name: path for name, path in files.items() if not path.exists()}
    if "float" in missing:
        write_float(net, size, files["float"])
    for form in ("qdq", "qop"):
        if f"static.{form}" in missing:
            write_static(files["float"], size, form == "qop", files[f"static.{form}"])
    for tag, bits in QTOOL.items():
        forms = {f: missing[f"{tag}.{f}"] for f in ("qdq", "qop") if f"{tag}.{f}" in missing}
        if forms:
            write_qtool(net, size, bits, forms)
