"""The Triton runtime in Triton's interpreter: the kernels of a GPU, run on this CPU.

On a machine with a GPU ``TRITON_INTERPRET=0 python -m pytest tests/test_triton.py`` compiles
them and runs them there.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_qtool
from fuzz import images
from fuzz_check import lowered
from programs import Net, everything, mobilenet_v2, resnet
from test_cli_errors import refused

from qtool.checking.models import choose_runtimes, open_models
from qtool.checking.record import CheckRecord
from qtool.core import numerics
from qtool.core.dialect import (
    Add,
    FloatGemm,
    Grid,
    Mul,
    Program,
    Quantize,
    Reshape,
    Slice,
    Transpose,
    read_program,
)
from qtool.core.errors import UnsupportedError, UserError
from runtimes.base import Artifact
from runtimes.reference import ReferenceRuntime
from runtimes.registry import RUNTIMES

pytest.importorskip("triton", reason="Triton is not installed: extra gpu")

from triton import knobs
from triton_programs import same

from runtimes.triton import layers
from runtimes.triton.device import INTERPRET, Device
from runtimes.triton.graph import Session
from runtimes.triton.operators import make_plan
from runtimes.triton.plan import Plan
from runtimes.triton.runtime import TritonRuntime
from runtimes.triton.tiles import _TILES, Tile, matrix_tile, plane_tile

INTERPRETED = pytest.mark.skipif(
    not knobs.runtime.interpret, reason="its kernels run on the GPU, not interpreted"
)
F32 = np.float32
META = Device(torch.device("meta"), 132, "no device")


def fuzzed(seed: int) -> None:
    try:
        dialect, shape, raw = lowered(seed)
    except UnsupportedError as error:  # as in test_fuzz
        assert "ONNX Runtime takes 2^-32 to 256" in str(error)
        return fuzzed(seed + 1_000_000)
    x = images(seed, shape, 1 + seed % 3)
    same(read_program(dialect), np.clip(x * 255, 0, 255).astype(np.uint8) if raw else x)


@pytest.mark.parametrize("seed", range(20))
def test_random_graph(seed: int) -> None:
    fuzzed(seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [*range(20, 40), *range(1000, 1300)])
def test_random_graph_sweep(seed: int) -> None:
    fuzzed(seed)


@pytest.mark.parametrize("net", [resnet((16, 24), 16), mobilenet_v2(16, 2)])
def test_small_network(net: Net) -> None:
    same(net.program(), net.images(1))


@pytest.mark.nightly
@pytest.mark.parametrize("net", [resnet((64, 128, 256, 512), 64), mobilenet_v2(64)])
def test_network(net: Net) -> None:
    """ResNet-18 and MobileNet-v2."""
    same(net.program(), net.images(2))


# Kernels


def test_every_operator() -> None:
    program = everything()
    x = np.random.default_rng(0).normal(0, 90, (3, *program.input_shape)).astype(F32)
    same(program, x)


LAYERS: list[dict[str, Any]] = [
    # Of 12 channels; then of 96, which are whole steps of a matrix product.
    {"outputs": 19, "kernel": 3, "strides": (2, 1), "pads": (2, 0, 1, 3)},
    {"outputs": 40, "kernel": 1, "pads": (0, 0, 0, 0)},
    {"outputs": 7, "kernel": 3, "dilations": (2, 3), "pads": (1, 1, 1, 1)},
    {"outputs": 24, "kernel": 3, "groups": 3, "strides": (1, 2)},
    {"outputs": 12, "kernel": 5, "groups": 12},
    {"outputs": 36, "kernel": 3, "groups": 12, "dilations": (1, 2)},
    {"outputs": 12, "kernel": 2, "groups": 12, "pads": (0, 0, 0, 0), "strides": (2, 2)},
    {"channels": 96, "outputs": 19, "kernel": 3, "strides": (2, 1), "pads": (2, 0, 1, 3)},
    {"channels": 96, "outputs": 40, "kernel": 1, "pads": (0, 0, 0, 0)},
    {"channels": 96, "outputs": 24, "kernel": 3, "groups": 3, "strides": (1, 2)},
    {"channels": 140, "outputs": 140, "kernel": 3, "groups": 140, "strides": (3, 3)},
]


@pytest.mark.parametrize("layer", LAYERS)
def test_convolutions(layer: dict[str, Any]) -> None:
    """Wild grids and windows."""
    channels = layer.get("channels", 12)
    layer = {name: value for name, value in layer.items() if name != "channels"}
    for seed in range(24 // channels + 1):
        net = Net((channels, 8, 9), seed=seed, wild=True)
        net.conv(net.input, **layer)
        same(net.program(), net.images(2))


@pytest.mark.parametrize("shape", _TILES)
def test_every_tile(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for depth in (32, 64, 128):
        tile = Tile(shape[0], shape[1], depth, shape[2])
        monkeypatch.setattr(layers, "matrix_tile", lambda *_, tile=tile: tile)
        net = Net((32, 6, 5), wild=True)
        net.gemm(net.flatten(net.conv(net.input, 21, 3, strides=(2, 2))), 9, FloatGemm)
        same(net.program(), net.images(3))


def test_tiles_fill_the_device() -> None:
    # A layer that has enough work gets the largest tile, a small one many programs.
    assert matrix_tile(100_352, 512, 1, 512, 4608, 132) == Tile(128, 128, 128, 8)
    small = matrix_tile(49, 512, 1, 512, 4608, 132)
    assert (small.pixels, small.columns, small.depth) == (16, 16, 128)
    assert matrix_tile(1, 10, 1, 64, 64, 132) == Tile(16, 16, 64, 2)
    assert matrix_tile(100_352, 16, 1, 96, 96, 132) == Tile(128, 16, 32, 4)
    assert matrix_tile(9, 64, 1, 3, 27, 1).depth == 32
    assert [plane_tile(n, 1024)[1] for n in (256, 96, 24, 19, 140, 1)] == [
        128,
        32,
        8,
        32,
        128,
        1,
    ]


def test_ties_nan_and_values_out_of_range() -> None:
    ties = np.arange(-2000, 2000, dtype=F32) / 4
    odd = F32([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, -0.0, 2**24 + 1])
    for scale, zero, lo, hi in ((0.5, 128, 0, 255), (3e-39, 3, 0, 255), (0.75, 9, 4, 11)):
        grid = Grid(F32(scale), zero)
        x = np.concatenate([ties, odd])
        op = Quantize("q", "q", ("x",), grid, lo, hi, (len(x),))
        program = Program("x", (len(x),), "float32", "y", "q", grid, (op,), {})
        same(program, x[None])


def every_pair(kind: type[Add] | type[Mul], a: Grid, b: Grid, y: Grid) -> Any:
    """The results for all codes of one tensor with all of another, two channels of pixels."""
    net = Net((2, 256, 256))
    one: dict[str, Any] = {"shape": (1, 256, 256), "steps": (1, 1, 1)}
    halves = [net.op(Slice, "x", starts=(k, 0, 0), **one) for k in range(2)]
    net.op(kind, halves, (1, 256, 256), a=a, b=b, grid=y)
    same(net.program(), np.stack(ALL_PAIRS)[None])
    return ReferenceRuntime(net.program()).intermediates(np.stack(ALL_PAIRS)[None])["t2"][0, 0]


ALL_PAIRS = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))


def test_a_sum_is_fused() -> None:
    """On these grids 1,505 sums differ where the product is rounded before it is added."""
    a, b, y = Grid(F32(1.1), 182), Grid(F32(0.1), 228), Grid(F32(0.6), 193)
    expected = every_pair(Add, a, b, y)
    ra, rb, c = numerics.add_coefficients(a.scale, 182, b.scale, 228, y.scale, 193)
    first, second = (codes.astype(F32) for codes in ALL_PAIRS)
    rounded = numerics.saturate(np.rint(first * ra + (second * rb + c)), 0, 255)
    assert (rounded != expected).sum() == 1505


def test_a_product_is_not_fused() -> None:
    """On these grids 57 products differ where the zero point is added without a rounding."""
    a, b, y = Grid(F32(0.020999998), 122), Grid(F32(1.5), 83), Grid(F32(0.7), 59)
    expected = every_pair(Mul, a, b, y)
    first, second = (codes.astype(F32) for codes in ALL_PAIRS)
    factor = numerics.multiply_factor(a.scale, b.scale, y.scale)
    fused = numerics.fma((first - F32(122)) * (second - F32(83)), factor, F32(59))
    assert (numerics.saturate(np.rint(fused), 0, 255) != expected).sum() == 57


# Plans


def plan_of(program: Program, batch: int = 2, keep: bool = False) -> Plan:
    return make_plan(program, batch, META, {}, keep)[0]


def names(program: Program) -> list[str]:
    """The kernels that `program` launches."""
    return [launch.kernel.__name__ for launch in plan_of(program).launches]


def test_codes_move_only_where_they_must() -> None:
    net = Net((4, 6, 5))
    x = net.op(Slice, "x", (4, 3, 5), starts=(0, 0, 0), steps=(1, 2, 1))
    x = net.op(Transpose, x, (4, 5, 3), perm=(0, 1, 3, 2))
    net.reshape(x, 2, 2, 5, 3)
    assert names(net.program()) == ["shift_pixels", "dequantize"]
    net = Net((4, 6, 5))
    net.shuffle("x")
    assert names(net.program()) == ["shift_pixels", "copy", "dequantize"]
    net = Net((4, 6, 1))
    net.flatten(net.average("x"))
    assert names(net.program()) == ["shift_pixels", "average", "dequantize"]


def test_odd_reshapes_are_exact() -> None:
    """Results that are no view of anything: 4 x 6 x 5 codes as 3 x 8 x 5, and then added."""
    net = Net((4, 6, 5), wild=True)
    x = net.reshape(net.lookup("x"), 3, 8, 5)
    net.conv(net.add(x, x), 5)
    same(net.program(), net.images(2))


@pytest.mark.parametrize("start", [0, 1])
def test_the_first_layer_reads_words(start: int) -> None:
    """Three channels have four bytes a pixel; three of four are read as they are."""
    net = Net((3, 5, 4), raw=False, wild=True)
    net.conv(net.input, 5)
    same(net.program(), net.images(2))
    (layer,) = (e for e in plan_of(net.program()).launches if "W_PITCH" in e.constants)
    assert layer.constants["CHANNELS"] == layer.constants["X_STRIDES"][2] == 4
    net = Net((4, 5, 4), wild=True)
    three = net.op(Slice, "x", (3, 5, 4), starts=(start, 0, 0), steps=(1, 1, 1))
    net.conv(three, 5)
    same(net.program(), net.images(2))
    (layer,) = (e for e in plan_of(net.program()).launches if "W_PITCH" in e.constants)
    assert layer.constants["CHANNELS"] == (3 if start else 4)


def test_one_launch_a_layer() -> None:
    program = mobilenet_v2(32).program()
    layers_of = [op.name for op in program.ops if not isinstance(op, Reshape)]
    assert [launch.name for launch in plan_of(program).launches] == [*layers_of, "y"]


def test_memory_is_used_again() -> None:
    program = resnet((16, 16), 64).program()
    taken: dict[bool, int] = {}
    for keep in (False, True):
        memory = plan_of(program, keep=keep)._memory
        taken[keep] = sum(block.numel() for block in memory.blocks)
    largest = max(int(np.prod(op.shape)) for op in program.ops) * 2
    # A residual block has three tensors of one size at once; the stem's is as large.
    assert 3 * largest <= taken[False] <= 4 * largest < taken[True] / 2


def test_what_a_view_shows_stays() -> None:
    """The table's result is read for the last time before its transpose is."""
    net = Net((2, 5, 5))
    turned = net.op(Transpose, net.lookup("x"), (2, 5, 5), perm=(0, 1, 3, 2))
    net.add(net.lookup("x"), turned)
    same(net.program(), net.images(2))


def test_more_elements_than_kernels_count_are_refused() -> None:
    program = resnet((64,), 224).program()
    with pytest.raises(UserError, match=r"3000 images of 64x112x112 are more than the 2,147"):
        plan_of(program, 3000)


def test_a_batch_of_another_size_gets_a_plan_of_its_own() -> None:
    net = resnet((8,), 16)
    program, runtime = net.program(), TritonRuntime(net.program())
    for batch in (1, 3, 3, 2):
        x = net.images(batch)
        assert np.array_equal(runtime.run(x), ReferenceRuntime(program).run(x))
    assert runtime._session is not None and runtime._session.batch == 2


@INTERPRETED
def test_a_gpu_replays_what_it_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls that a CUDA graph needs; the kernels are interpreted all the same."""
    calls: list[str] = []

    class Recorder:
        def replay(self) -> None:
            calls.append("replay")
            run()

    def run() -> None:
        for launch in session.plan.launches:
            launch()

    @contextmanager
    def recording(_: Recorder) -> Iterator[None]:
        calls.append("record")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(Plan, "run", lambda plan: calls.append("launch"))
    net = resnet((8,), 16)
    session = Session(net.program(), 2, Device(torch.device("cpu"), 1, ""), {})
    assert calls == ["launch", "wait", "record", "launch"]
    x = net.images(2)
    assert np.array_equal(session.run(x), ReferenceRuntime(net.program()).run(x))
    assert calls[4:] == ["replay"]


# What the user sees


@INTERPRETED
def test_check_says_that_kernels_were_interpreted(tiny: Path, tmp_path: Path) -> None:
    report = tmp_path / "check.json"
    command = ("check", tiny / "model.onnx", "--runtime", "reference,triton")
    done = run_qtool(*command, "--require-parity", "--json", report)
    assert done.code == 0, done.err
    content = json.loads(report.read_text())
    parity = content["parity"]["triton"]
    assert parity["required"] and parity["mismatched"] == 0 < parity["compared"]
    assert content["devices"] == {"triton": device_text()}
    assert device_text() in done.out
    assert CheckRecord.from_json(content).to_json() == content


def device_text() -> str:
    return f"this CPU, by the interpreter of Triton {metadata.version('triton')}"


def test_it_is_used_on_request_only(tiny: Path) -> None:
    (model,) = open_models([tiny / "model.onnx"])
    assert list(choose_runtimes(model, None)) == ["reference", "ort"]
    assert list(choose_runtimes(model, ["triton"])) == ["triton"]


def test_without_a_gpu_the_interpreter_is_named(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INTERPRET, "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run_qtool("check", tiny / "model.onnx", "--runtime", "triton")
    refused(result, "needs a CUDA GPU, and PyTorch finds none: TRITON_INTERPRET=1 in the")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    RUNTIMES["triton"].require()


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_what_is_not_installed_is_named(
    package: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = metadata.version

    def version(name: str) -> str:
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return true(name)

    monkeypatch.setattr(metadata, "version", version)
    result = run_qtool("check", tiny / "model.onnx", "--runtime", "triton")
    refused(result, f"needs {package}, not installed: pip install 'qtool[gpu]'")


def test_an_island_is_refused() -> None:
    program = read_program(lowered(3001, islands=True)[0])
    with pytest.raises(UnsupportedError, match=r"in floating point .*--runtime ort has it"):
        plan_of(program)


def test_a_file_without_its_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m.so: runtime triton needs the program of the file"):
        RUNTIMES["triton"].open(Artifact(tmp_path / "m.so"))


_REGISTRY = """
import sys
import qtool.cli.main, runtimes.registry
from runtimes.registry import RUNTIMES
RUNTIMES["triton"]._kind()
print(sorted({"torch", "triton"} & {*sys.modules}))
"""


def test_the_runtime_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", _REGISTRY], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.nightly
@pytest.mark.parametrize(
    "value, said", [("0", "PyTorch finds none"), ("1", "say nothing: unset TRITON_INTERPRET")]
)
def test_the_benchmark_needs_a_gpu(value: str, said: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    script = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True,
        env=os.environ | {INTERPRET: value},
    )  # fmt: skip
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr
