"""One network at several pairs: every file is the single export, weights are there once."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import test_malformed
import torch
from test_parity import randomise_norms
from torch import Tensor, nn

from passes.emit.onnx.earlier_graphs import earlier_graphs
from passes.emit.onnx.onnx_file import file_model
from passes.emit.onnx.pair_files import INDEX, WEIGHTS, PairFiles, pair_files
from passes.emit.onnx.shared_file import SHARED_KEY, facts_of
from passes.pipelines import lower
from qtool.core.dialect import Program, read_program
from qtool.core.errors import UserError
from qtool.core.files import write_together
from qtool.core.pairs import pair_name
from qtool.core.selection import LayerBits, Selection
from qtool.export.read import read_onnx
from qtool.export.trace import trace
from qtool.nn.control import calibrate
from qtool.nn.prepare.prepare import QuantSpec, prepare
from runtimes.ort import OrtRuntime
from runtimes.reference import ReferenceRuntime

SHAPE = (3, 8, 8)
PAIRS = [LayerBits(w, a) for w in (8, 4, 2, 1) for a in (8, 4, 2)]
SPECS = {
    "double_rounding": QuantSpec((8, 4, 2), (8, 4, 2, 1), quantizer="double_rounding"),
    "sat": QuantSpec((8, 4, 2), (8, 4, 2, 1), quantizer="sat"),
    "lsq": QuantSpec((8, 4, 2), (8, 4, 2, 1), quantizer="lsq"),
}


class Wide(nn.Module):
    """A residual network whose files are mostly weights; a depthwise layer in it."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.conv = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.depth = nn.Conv2d(width, width, 3, groups=width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.depth(torch.relu(self.conv(x)) + x))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


@cache
def traced(kind: str) -> bytes:
    """The adaptive graph of a network with BatchNorm of either sign."""
    torch.manual_seed(4)
    net = Wide()
    randomise_norms(net)
    model = prepare(net, SPECS[kind], SHAPE)
    calibrate(model, torch.rand(16, *SHAPE))
    return ir.to_proto(trace(model, SHAPE)).SerializeToString()


def lowered(kind: str, pair: LayerBits) -> ir.Model:
    graph = ir.from_proto(onnx.load_model_from_string(traced(kind)))
    return lower(graph, Selection(default=pair))


@cache
def made(kind: str, form: str, pairs: tuple[LayerBits, ...] = tuple(PAIRS)) -> PairFiles:
    return pair_files({pair_name(pair): lowered(kind, pair) for pair in pairs}, form)


def written(folder: Path, kind: str = "double_rounding", form: str = "qdq") -> PairFiles:
    files = made(kind, form)
    write_together(files.files(folder))
    return files


@pytest.mark.parametrize("form", ["qdq", "qop"])
@pytest.mark.parametrize("kind", SPECS)
def test_every_file_computes_what_the_single_export_does(
    kind: str, form: str, tmp_path: Path
) -> None:
    files = written(tmp_path, kind, form)
    x = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    for pair in PAIRS:
        name = pair_name(pair)
        alone, program = (
            read_program(lowered(kind, pair)),
            read_onnx(tmp_path / f"{name}.onnx"),
        )
        assert program.digest() == alone.digest() == files.index["pairs"][name]["digest"]
        runtime = OrtRuntime(tmp_path / f"{name}.onnx", program.tensors())
        assert not runtime.float_ops(), name
        reference = ReferenceRuntime(alone)
        assert np.array_equal(runtime.run(x), reference.run(x)), name
        expected = reference.intermediates(x)
        for tensor, codes in runtime.intermediates(x).items():
            assert np.array_equal(codes, expected[tensor]), (name, tensor)


@pytest.mark.parametrize("form", ["qdq", "qop"])
@pytest.mark.parametrize("kind", ["double_rounding", "sat"])
def test_nesting_codes_are_there_once(kind: str, form: str) -> None:
    index = made(kind, form).index
    weights = 96 * 3 * 9 + 96 * 96 * 9 + 96 * 9 + 96 * 5
    assert weights < index["shared"]["bytes"] < 1.1 * weights
    # The graphs hold scales and biases, eight bytes a channel, and nodes.
    graphs = [entry["bytes"] for entry in index["pairs"].values()]
    assert max(graphs) < 8 * (3 * 96 + 5) + 3000
    assert index["total_bytes"] == index["shared"]["bytes"] + sum(graphs)
    assert index["stored_apart"] == [] and index["largest_alone"]["pair"] == "w8a8"
    four = tuple(LayerBits(w, a) for w in (8, 4) for a in (8, 4))
    assert made(kind, form, four).index["ratio"] <= 1.15


def test_codes_that_do_not_nest_are_stored_at_each_width_and_said() -> None:
    files = made("lsq", "qdq")
    # 8, 4, 2 and 1 bits of each weight.
    weights = 96 * 96 * 9
    assert files.index["shared"]["bytes"] > weights * (1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert "conv.0" in files.index["stored_apart"]
    size, apart = files.sentences()
    assert size.startswith("12 pairs in ") and " x w8a8 alone: " in size
    assert "do not nest" in apart and "double_rounding" in apart
    assert len(list(made("sat", "qdq").sentences())) == 1


def test_alone_is_the_file_that_an_export_at_that_pair_writes() -> None:
    dialect = lowered("double_rounding", LayerBits(8, 8))
    size = len(file_model(dialect, "qdq").SerializeToString())
    index = made("double_rounding", "qdq").index
    assert index["largest_alone"] == {"pair": "w8a8", "bytes": size}
    assert index["ratio"] == pytest.approx(index["total_bytes"] / size, abs=1e-4)


def test_the_index_says_what_is_there(tmp_path: Path) -> None:
    written(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    assert list(index["pairs"]) == [pair_name(pair) for pair in PAIRS]
    for entry in (index["shared"], *index["pairs"].values()):
        content = (tmp_path / entry["file"]).read_bytes()
        found = facts_of(entry["file"], content)
        assert {key: entry[key] for key in found} == found
    assert {path.name for path in tmp_path.iterdir()} == {
        INDEX, WEIGHTS, *(f"{name}.onnx" for name in index["pairs"]),
    }  # fmt: skip


@pytest.mark.parametrize("text", [
    "{", "[]", "{}", '{"pairs": [1]}', '{"pairs": {"w8a8": 1}}', "[" * 100_000,
    '{"pairs": {"w8a8": {"file": 3}}}', '{"pairs": {"w8a8": {"file": "../index.json"}}}',
])  # fmt: skip
def test_a_damaged_index_names_nothing_to_remove(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    assert earlier_graphs(tmp_path / INDEX, ()) == []
    assert earlier_graphs(tmp_path / "none", ()) == []


def test_equal_networks_make_equal_bytes() -> None:
    again = pair_files(
        {pair_name(pair): lowered("sat", pair) for pair in PAIRS}, "qdq"
    )  # fmt: skip
    assert again.content == made("sat", "qdq").content


# What is not read


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    written(tmp_path / "pairs")
    yield tmp_path / "pairs"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_onnx(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def read(folder: Path) -> Program:
    return read_onnx(folder / "w4a4.onnx")


def test_a_moved_folder_is_read_and_a_lonely_graph_is_not(folder: Path) -> None:
    moved = folder.rename(folder.parent / "moved")
    assert read(moved).ops
    shutil.copy(moved / "w4a4.onnx", moved.parent / "alone.onnx")
    text = refusal(moved.parent / "alone.onnx")
    assert "no such file; keep both in one folder" in text


def test_another_or_damaged_shared_file_is_refused(folder: Path) -> None:
    path = folder / WEIGHTS
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"x", bytes([content[0] ^ 1]) + content[1:], b""):
        path.write_bytes(damaged)
        assert "which is damaged or of another export" in refusal(folder / "w4a4.onnx")
    path.unlink()
    (folder / "elsewhere").write_bytes(content)
    path.symlink_to(folder / "elsewhere")
    assert "a link; put the file itself there" in refusal(folder / "w4a4.onnx")
    path.unlink()
    path.mkdir()
    assert "no such file" in refusal(folder / "w4a4.onnx")


def entry(model: onnx.ModelProto, key: str, value: str) -> None:
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(e for e in tensor.external_data if e.key == key).value = value


def facts(model: onnx.ModelProto, **changes: Any) -> None:
    prop = next(p for p in model.metadata_props if p.key == SHARED_KEY)
    prop.value = json.dumps(json.loads(prop.value) | changes)


def text(model: onnx.ModelProto, value: str) -> None:
    next(p for p in model.metadata_props if p.key == SHARED_KEY).value = value


def forget(model: onnx.ModelProto) -> None:
    kept = [p for p in model.metadata_props if p.key != SHARED_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def drop_length(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.external_data)
    del tensor.external_data[2]


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "absolute": (lambda m: entry(m, "location", "/etc/passwd"), "is stored elsewhere"),
    "above": (lambda m: entry(m, "location", "../weights.bin"), "is stored elsewhere"),
    "beyond": (lambda m: entry(m, "offset", "999999999"), "is stored beyond the"),
    "before": (lambda m: entry(m, "offset", "-64"), "is stored beyond the"),
    "no number": (lambda m: entry(m, "offset", "x"), "is stored beyond the"),
    "longer": (lambda m: entry(m, "length", "99999999999"), "is stored beyond the"),
    "shorter": (lambda m: entry(m, "length", "7"), "items of data"),
    "no length": (drop_length, "is stored elsewhere"),
    "not said": (forget, "is stored in another file"),
    "a path": (lambda m: facts(m, file="../pairs/weights.bin"), "no plain name"),
    "this folder": (lambda m: facts(m, file=".."), "no plain name"),
    "no name": (lambda m: facts(m, file=""), "no plain name"),
    "another file": (lambda m: facts(m, file=INDEX), "damaged or of another export"),
    "number": (lambda m: facts(m, file=3), "metadata is damaged"),
    "no JSON": (lambda m: text(m, "{"), "metadata is damaged"),
    "a list": (lambda m: text(m, "[]"), "metadata is damaged"),
    "deep": (lambda m: text(m, "[" * 100_000), "metadata is damaged"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_references_elsewhere_are_refused(damage: str, folder: Path) -> None:
    path = folder / "w4a4.onnx"
    model = onnx.load(path, load_external_data=False)
    change, reason = REFUSED[damage]
    change(model)
    path.write_bytes(model.SerializeToString())
    assert reason in refusal(path)


def survives(data: bytes, path: Path) -> bool:
    """Read a damaged graph; return whether it was refused, in one line."""
    program = test_malformed.read(data, path)
    if isinstance(program, str):
        return True
    whole = onnx.load(path).SerializeToString()
    assert test_malformed.agrees(program, whole), "read, and answered unlike ONNX Runtime"
    return False


def test_flipped_bytes(folder: Path) -> None:
    draw, path = np.random.default_rng(0), folder / "w4a4.onnx"
    original, refused = np.frombuffer(path.read_bytes(), np.uint8), 0
    for _ in range(100):
        data = original.copy()
        where = draw.integers(len(data), size=int(draw.integers(1, 4)))
        data[where] ^= draw.integers(1, 256, where.size).astype(np.uint8)
        refused += survives(data.tobytes(), path)
    assert refused > 30


@pytest.mark.parametrize("mutate", mutations.MUTATIONS, ids=lambda f: f.__name__)
def test_mutated_protobufs(
    mutate: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # mutations that read a tensor find it
    draw, path = np.random.default_rng(len(mutate.__name__)), folder / "w4a4.onnx"
    original = path.read_bytes()
    for _ in range(4):
        model = onnx.load_model_from_string(original)
        mutate(model, draw)
        survives(model.SerializeToString(), path)
