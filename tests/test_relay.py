"""Relay on programs: the reference's integers, whatever the operator, CPU and form of call."""

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fuzz import images
from fuzz_check import lowered
from programs import Net, everything, mobilenet_v2, resnet
from relay_calls import Relay, exact, parity
from test_relay_text import double_rounding

from passes.emit.relay.emit import QNN
from qtool.core import numerics
from qtool.core.dialect import Add, Grid, Mul, Op, Program, Quantize, Slice, read_program
from qtool.core.errors import UnsupportedError, UserError
from qtool.core.relay.environment import require_relay
from qtool.core.relay.process import Process

pytestmark = pytest.mark.relay
F32 = np.float32
# Without fused multiply-adds, with them, with 512 bits: whatever this machine has of them.
CPUS = ("x86-64", "haswell", "skylake-avx512", "cascadelake")


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process() as made:
        yield made


def test_every_operator(process: Process) -> None:
    program = everything()
    x = np.random.default_rng(0).normal(0, 100, (3, *program.input_shape)).astype(F32)
    exact(Relay(process, program), x)


@pytest.mark.parametrize("mcpu", CPUS)
def test_every_operator_on_other_cpus(process: Process, mcpu: str) -> None:
    program = everything()
    x = np.random.default_rng(1).normal(0, 100, (2, *program.input_shape)).astype(F32)
    try:
        exact(Relay(process, program), x, mcpu)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("seed", range(6))
def test_windows_ends_of_bytes_and_sums_out_of_range(process: Process, seed: int) -> None:
    net = Net((6, 7, 5), raw=False, seed=seed, wild=True)
    x = net.conv(net.input, 8, dilations=(1, 2), strides=(2, 1))
    x = net.add(net.conv(x, 8, groups=8), net.mul(x, net.average(x)))
    net.gemm(net.flatten(net.hardswish(net.conv(x, 16, 1, groups=4))), 9)
    exact(Relay(process, net.program()), net.images(4))


def test_inputs_that_are_no_numbers(process: Process) -> None:
    ops = [Quantize("q", "t", ("x",), Grid(F32(0.3), z), lo, 250, (8,)) for z, lo in ((7, 0),)]
    program = Program("x", (8,), "float32", "y", "t", ops[0].grid, tuple(ops), {})
    x = np.array([[np.nan, np.inf, -np.inf, 3e38, -3e38, 0.15, 0.45, -0.0]], F32)
    exact(Relay(process, program), x)


def test_division_is_division(process: Process) -> None:
    """TVM multiplies by the reciprocal of a scalar constant: 1 in 400 would be wrong."""
    op = Quantize("q", "t", ("x",), Grid(F32(1 / 255), 0), 0, 255, (2000,))
    program = Program("x", (2000,), "float32", "y", "t", op.grid, (op,), {})
    ties = (np.arange(2000) % 255 + 0.5).astype(F32) * F32(1 / 255)
    x = np.stack([ties, np.nextafter(ties, F32(9)), np.nextafter(ties, F32(-9))])
    exact(Relay(process, program), x)


def test_a_sum_that_is_a_table(process: Process) -> None:
    op = double_rounding()
    ops = [Quantize(name, name, ("x",), Grid(F32(1), 0), 0, 255, (4,)) for name in op.inputs]
    program = Program("x", (4,), "float32", "y", "t", op.grid, (*ops, op), {})
    exact(Relay(process, program), np.array([[3, 0, 1, 255]], F32))


EVERY_PAIR = np.stack(np.mgrid[:256, :256]).astype(np.uint8)[None]


def pairs(kind: type[Op], scales: tuple[float, float, float], zeros: Sequence[int]) -> Program:
    """A sum or product of the two channels of an image."""
    a, b, y = (Grid(F32(s), z) for s, z in zip(scales, zeros, strict=True))
    shape = (1, 256, 256)
    cut = [
        Slice(f"cut{c}", f"c{c}", ("x",), a, 0, 255, shape, (c, 0, 0), (1, 1, 1))
        for c in range(2)
    ]
    op = kind("pair", "t", ("c0", "c1"), y, 0, 255, shape, a=a, b=b)  # type: ignore[call-arg]
    return Program("x", (2, 256, 256), "uint8", "y", "t", y, (*cut, op), {})


@pytest.mark.parametrize(
    "factor, zero", [(1 / 24, 228), (1 / 48, 149), (1 / 12, 213), (1 / 30, 45)]
)
def test_a_product_and_its_zero_point_are_rounded_apart(
    process: Process, factor: float, zero: int
) -> None:
    """Fused, hundreds of these would be wrong."""
    program = pairs(Mul, (factor, 1, 1), (7, 99, zero))
    product = (EVERY_PAIR[0, 0].astype(int) - 7) * (EVERY_PAIR[0, 1].astype(int) - 99)
    fused = np.rint(numerics.fma(product, F32(factor), F32(zero))).clip(0, 255)
    rounded = np.rint(product.astype(F32) * F32(factor) + F32(zero)).clip(0, 255)
    assert (fused != rounded).sum() > 3
    exact(Relay(process, program), EVERY_PAIR)


@pytest.mark.parametrize(
    "scales", [(1 / 3, 1 / 3, 1 / 6), (0.1, 0.3, 0.2), (1 / 3, 5 / 6, 1 / 7), (1, 0.5, 1)]
)
@pytest.mark.parametrize("mcpu", [None, "x86-64"])  # the latter has no fused multiply-add
def test_every_sum(
    process: Process, scales: tuple[float, float, float], mcpu: str | None
) -> None:
    exact(Relay(process, pairs(Add, scales, (13, 200, 101))), EVERY_PAIR, mcpu)


def test_names_of_any_kind(process: Process) -> None:
    op = Quantize("a */ } \n%0 // ü", "t[0]", ("in:put",), Grid(F32(0.5), 3), 0, 255, (4,))
    program = Program("in:put", (4,), "float32", "y", "t[0]", op.grid, (op,), {})
    exact(Relay(process, program), np.array([[3, 0, 1, 255]], F32))


def test_pixels(process: Process) -> None:
    net = Net((3, 6, 6))
    net.gemm(net.flatten(net.conv("x", 5)), 4)
    exact(Relay(process, net.program()), net.images(3))


def test_qnn_differs_and_not_by_much(process: Process) -> None:
    """Its own rounding: it is counted, and it is not zero."""
    net = Net((3, 9, 9), seed=3)
    net.conv("x", 16)
    made = Relay(process, net.program(), QNN)
    found = parity(made, net.images(8))
    assert 0 <= found.mismatched < 0.02 * found.compared and found.max_lsb <= 1
    program = everything()
    x = np.random.default_rng(0).normal(0, 100, (3, *program.input_shape)).astype(F32)
    assert parity(Relay(process, program, QNN), x).mismatched > 0


# Networks


@pytest.mark.parametrize("seed", range(40))
def test_random_graph(process: Process, seed: int) -> None:
    check(process, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_random_graph_sweep(process: Process, seed: int) -> None:
    check(process, seed)


def check(process: Process, seed: int) -> None:
    try:
        dialect, shape, raw = lowered(seed)
    except UnsupportedError as error:
        # Scales are drawn blindly: now and then an average is refused. Draw another network.
        assert "ONNX Runtime takes 2^-32 to 256" in str(error)
        check(process, seed + 1_000_000)
        return
    x = images(seed, shape, 1 + seed % 3)
    if raw:
        x = np.clip(x * 255, 0, 255).astype(np.uint8)
    exact(Relay(process, read_program(dialect)), x, output=seed % 4 == 0)


def test_a_resnet(process: Process) -> None:
    net = resnet((16, 32, 64, 128), 32)
    exact(Relay(process, net.program()), net.images(2))


def test_a_mobilenet(process: Process) -> None:
    net = mobilenet_v2(32, blocks=5)
    exact(Relay(process, net.program()), net.images(2), output=False)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_networks_of_full_size(process: Process, name: str) -> None:
    net = resnet((64, 128, 256, 512), 112) if name == "resnet" else mobilenet_v2(224)
    exact(Relay(process, net.program()), net.images(1))


# TVM alone

PLAIN = """
import sys
import numpy as np
import tvm
from tvm import relay
from tvm.contrib import graph_executor

text, parameters, images, output = sys.argv[1:5]
module = relay.parse(open(text).read())
given = relay.load_param_dict(open(parameters, "rb").read())
for level, bound in ((0, True), (3, True), (3, False)):
    with tvm.transform.PassContext(opt_level=level):
        library = relay.build(module, "llvm", params=given if bound else {})
    network = graph_executor.GraphModule(library["default"](tvm.cpu()))
    if not bound:
        network.set_input(**given)
    network.set_input(module["main"].params[0].name_hint, np.load(images))
    network.run()
    np.save(f"{output}{level}{bound}.npy", network.get_output(0).numpy())
"""


def test_any_level_and_way_of_passing_parameters(process: Process, tmp_path: Path) -> None:
    """The text is exact in TVM's hands, not only in the worker's."""
    from passes.emit.relay.emit import emit
    from passes.emit.relay.parameters import parameter_bytes
    from runtimes.reference import ReferenceRuntime

    program = everything()
    made = emit(program)
    x = np.random.default_rng(5).normal(0, 100, (1, *program.input_shape)).astype(F32)
    (tmp_path / "m.relay").write_text(made.main)
    (tmp_path / "m.params").write_bytes(parameter_bytes(made.parameters))
    np.save(tmp_path / "x.npy", x)
    paths = [str(tmp_path / name) for name in ("m.relay", "m.params", "x.npy", "y")]
    done = subprocess.run(
        [str(require_relay()), "-I", "-c", PLAIN, *paths],
        capture_output=True, text=True, env={"TOPHUB_LOCATION": "NONE"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    expected = ReferenceRuntime(program).run(x)
    for end in ("0True", "3True", "3False"):
        assert np.array_equal(np.load(tmp_path / f"y{end}.npy"), expected), end
