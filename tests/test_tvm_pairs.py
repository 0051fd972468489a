"""One network at several pairs in one TVM library: a function each, what is equal once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_qtool
from kernel_runner import Arena
from test_cli_errors import refused
from test_pair_files import PAIRS, SHAPE, SPECS, lowered
from tiny_files import resealed

from passes.emit.tvm.compile import compile_program
from passes.emit.tvm.cpu.kernels.narrow import Narrow, codes_of, narrow
from passes.emit.tvm.cpu.tvm_module import emit, emit_tvm
from passes.emit.tvm.cpu_target import host_target
from passes.emit.tvm.pairs import compile_pairs, plan_pairs
from passes.emit.tvm.target import TvmTarget
from qtool.core.dialect import Program, read_program
from qtool.core.errors import UserError
from qtool.core.pairs import pair_name
from qtool.core.sealed import networks_of, read_seal
from qtool.core.selection import LayerBits
from runtimes.compare import Parity
from runtimes.latency import measure
from runtimes.reference import ReferenceRuntime
from runtimes.tvm import TvmRuntime

KIND = "double_rounding"
SOME = [LayerBits(*bits) for bits in ((8, 8), (4, 8), (4, 2), (1, 2))]
NAMES = [pair_name(pair) for pair in SOME]


LEFT_OUT = {"w7a7": "it has no integer form"}


def program(pair: LayerBits, kind: str = KIND) -> Program:
    return read_program(lowered(kind, pair))


def written(folder: Path, pairs: list[LayerBits], kind: str = KIND) -> list[str]:
    dialects = {pair_name(pair): lowered(kind, pair) for pair in pairs}
    return TvmTarget().write_pairs(dialects, folder, lambda _: None, LEFT_OUT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    (said,) = written(folder, SOME)
    assert said.startswith("4 pairs in ") and " x w8a8 alone: " in said
    return folder


@pytest.fixture(scope="module")
def content(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return read


def differing(library: Path, pairs: list[LayerBits], kind: str) -> dict[str, int]:
    """Count the integers of every pair that differ from the reference's."""
    x = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    runtime, found = TvmRuntime(library, pair_name(pairs[0])), {}
    for pair in pairs:
        name, parity = pair_name(pair), Parity()
        entry, reference = runtime.at(name), ReferenceRuntime(program(pair, kind))
        fused = entry.metadata["module"]["fused_tensors"]
        parity.add_all(reference.intermediates(x), entry.intermediates(x), fused)
        parity.add("output", reference.run(x).view(np.int32), entry.run(x).view(np.int32))
        assert parity.compared > 5 * len(x) and not entry.float_ops()
        found[name] = parity.mismatched
    return found


def test_every_pair_has_the_integers_of_the_reference(folder: Path) -> None:
    assert differing(folder / "model.so", SOME, KIND) == dict.fromkeys(NAMES, 0)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", SPECS)
def test_all_pairs(kind: str, tmp_path: Path) -> None:
    written(tmp_path, PAIRS, kind)
    wrong = differing(tmp_path / "model.so", PAIRS, kind)
    assert wrong == {pair_name(pair): 0 for pair in PAIRS}


def test_another_pair_loads_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).random((1, *SHAPE), np.float32)
    runtime = TvmRuntime(folder / "model.so", "w8a8")

    def load(path: str) -> None:
        raise AssertionError(f"{path} was loaded")

    monkeypatch.setattr("tvm.runtime.load_module", load)
    monkeypatch.setattr("shutil.copyfile", load)
    entries = [runtime.at(name) for name in NAMES]
    for _ in range(2):
        for entry, pair in zip(entries, SOME, strict=True):
            assert np.array_equal(entry.run(x), ReferenceRuntime(program(pair)).run(x))
    # What was made for one pair serves others of its width.
    assert set(runtime._made) == {"weights_w4"}


def test_weights_that_nest_are_there_once(content: dict[str, Any]) -> None:
    pairs = content["pairs"]
    alone = {name: pairs[name]["weight_blob_bytes"] for name in NAMES}
    for name, pair in zip(NAMES[:2], SOME, strict=False):
        module = emit_tvm(program(pair), host_target())
        assert module.constants == module.facts["weight_blob_bytes"] == alone[name]
    weights = 96 * 3 * 9 + 96 * 96 * 9 + 96 * 9 + 96 * 5
    assert weights < alone["w8a8"]
    # What other pairs add: scales, biases, a table; 1 bit of channels turned round does not
    # follow the table of the others.
    module = emit(plan_pairs({pair_name(p): program(p) for p in SOME[:3]}, host_target()))
    assert module.constants - alone["w8a8"] < weights / 4
    assert [pairs[name]["weights"] for name in NAMES] == [None, *["weights_w4"] * 2, None]
    assert list(content["made_bytes"]) == ["weights_w4"]
    assert content["left_out"] == LEFT_OUT


def test_weights_that_do_not_nest_are_there_once_a_width() -> None:
    programs = {pair_name(pair): program(pair, "lsq") for pair in SOME}
    module = emit(plan_pairs(programs, host_target()))
    assert not module.weights
    alone = {pair: facts["weight_blob_bytes"] for pair, facts in module.networks.items()}
    # w4a8 and w4a2 have the same codes.
    assert alone["w8a8"] < module.constants
    assert module.constants < alone["w8a8"] + alone["w4a8"] + alone["w1a2"]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_narrow_codes_are_made_of_wide_ones(bits: int) -> None:
    rng, half = np.random.default_rng(bits), 1 << (bits - 1)
    arena, checks = Arena(), []
    for shape in ((1, 1, 70), (3, 4, 64), (2, 7, 16), (1, 2, 1)):
        wide = rng.integers(-128, 128, shape).astype(np.int8)
        table = rng.integers(-half, half, 256).astype(np.int8)
        want = narrow(wide, table, shape, bits)
        assert want.size == shape[0] * -(-shape[1] * bits // 8) * shape[2]
        assert np.array_equal(codes_of(want, shape, bits), table[wide.view(np.uint8)])
        constants = (wide, table, np.array(shape, np.int32))
        places = [arena.put(array) for array in (np.zeros_like(want), *constants)]
        guard = arena.put(np.zeros(16, np.uint8))
        arena.call(Narrow(bits), *places)
        checks.append((places[0], want, guard))
    memory = arena.run()
    for start, want, guard in checks:
        assert np.array_equal(memory[start : start + want.size].view(np.int8), want)
        assert not memory[guard : guard + 16].any()


def test_equal_kernels_are_there_once(content: dict[str, Any]) -> None:
    functions = [
        {kernel["function"] for kernel in content["pairs"][name]["kernels"]} for name in NAMES
    ]
    together = set[str]().union(*functions)
    plans = plan_pairs({pair_name(p): program(p) for p in SOME}, host_target()).values()
    kernels = {step.kernel for network in plans for step in network.plan.steps}
    assert len(kernels) == len(together) < sum(map(len, functions))


def test_json_says_what_the_pairs_are(folder: Path, content: dict[str, Any]) -> None:
    data, sealed = (folder / "model.so").read_bytes(), read_seal(folder / "model.so")
    assert content["file"] == "model.so" and content["bytes"] == len(data)
    assert list(content["pairs"]) == list(networks_of(sealed)) == NAMES
    for name, pair in zip(NAMES, SOME, strict=True):
        said, alone = content["pairs"][name], program(pair)
        assert said["digest"] == alone.digest()
        assert (said["function"], said["trace"]) == (name, f"trace_{name}")
        assert said["bops"] == networks_of(sealed)[name]["bops"] > 0
        assert said["output"]["scale"] == float(alone.output_grid.scale)
        bits = said["layers"]["conv.0"]
        assert (bits["weight_bits"], bits["activation_bits"]) == (pair.weight, pair.activation)
    single = plan_pairs({"w8a8": program(LayerBits(8, 8))}, host_target())
    alone = len(compile_pairs(single, host_target()).alone.data)
    assert alone < len(compile_program(program(LayerBits(8, 8))).data)
    assert content["largest_alone"] == {"pair": "w8a8", "bytes": alone}
    assert content["ratio"] == round(len(data) / alone, 4) < len(SOME)


def test_a_pair_is_named(folder: Path, tmp_path: Path) -> None:
    library = folder / "model.so"
    listed = ", ".join(NAMES)
    with pytest.raises(UserError, match=f"several pairs, name one: there are {listed}$"):
        TvmRuntime(library)
    with pytest.raises(UserError, match=f"holds no pair w2a2: there are {listed}$"):
        TvmRuntime(library, "w8a8").at("w2a2")
    path = tmp_path / "one.so"
    path.write_bytes(compile_program(program(LayerBits(1, 2))).data)
    with pytest.raises(UserError, match="holds a single network, not one called w1a2"):
        TvmRuntime(path, "w1a2")
    refused(run_qtool("check", path, "--bits", "w1a2"), "names pairs of a file of several")
    refused(run_qtool("check", library, "--bits", "w1a2,w2a2"), f"among {listed}")
    refused(run_qtool("bops", library), f"name one with --bits, of {listed}")
    assert run_qtool("bops", library, "--bits", "w1a2").code == 0
    assert measure(library, "tvm", SHAPE, pair="w1a2").runs > 0


@pytest.mark.parametrize("pairs", [{}, [], {"w8a8": 1}, {"w8a8": {"module": None}}])
def test_a_damaged_list_of_pairs_is_one_line(folder: Path, tmp_path: Path, pairs: Any) -> None:
    path = resealed(folder / "model.so", tmp_path / "m.so", pairs=pairs)
    refused(run_qtool("check", path), "m.so: written by qtool", "export it again")


def test_the_readable_module_of_several(tmp_path: Path) -> None:
    path = tmp_path / "pairs.py"
    dialects = {pair_name(pair): lowered(KIND, pair) for pair in SOME[:2]}
    target = TvmTarget(emit_ir=path)
    assert target.pair_files(list(dialects), None) == [path]
    assert target.write_pairs(dialects, None, lambda _: None) == []
    text = path.read_text()
    for name in NAMES[:2]:
        assert f"def {name}(" in text and f"def trace_{name}(" in text
    assert "def main(" not in text


def test_what_the_files_are_called(tmp_path: Path) -> None:
    target = TvmTarget()

    def names(output: Path | None) -> list[Path]:
        return target.pair_files(NAMES, output)

    both = [tmp_path / "model.so", tmp_path / "model.json"]
    assert names(tmp_path) == names(tmp_path / "model.so") == both
    assert names(tmp_path / "m.tar") == [tmp_path / "m.tar", tmp_path / "m.json"]
    with pytest.raises(UserError, match="the folder to write to"):
        names(None)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="is a file; several pairs need a folder"):
        names(tmp_path / "file")
