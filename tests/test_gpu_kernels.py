"""GPU kernels with loops for threads, on this CPU: every integer is the reference's."""

import re
from typing import Any

import numpy as np
import pytest
import tvm
from fuzz_check import lowered
from gpu_kernels import PRODUCTS, SerialRuntime
from programs import Net, mobilenet_v2, resnet
from test_completeness import everything
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu_target import host_target
from passes.emit.tvm.cuda import intrinsics, plan
from passes.emit.tvm.cuda.intrinsics import FMA, WARP
from passes.emit.tvm.cuda.kernels import tir
from passes.emit.tvm.cuda.kernels.depthwise import Depthwise
from passes.emit.tvm.cuda.kernels.implicit_gemm import ImplicitGemm
from passes.emit.tvm.cuda.kernels.portable import Portable
from passes.emit.tvm.cuda.kernels.products import Products
from passes.emit.tvm.cuda.kernels.tir import Argument
from passes.emit.tvm.cuda.module import emit_cuda
from passes.emit.tvm.cuda.plan import Plan, make_plan
from passes.emit.tvm.cuda.serial import serial_module
from passes.emit.tvm.cuda.tiles import DP4A, MMA, choose
from qtool.core import numerics
from qtool.core.dialect import Conv, FloatGemm, MaxPool, Program, read_program
from qtool.core.errors import UnsupportedError
from runtimes.compare import Parity
from runtimes.reference import ReferenceRuntime

Array = np.ndarray[Any, Any]


def exact(net: Net | Program, products: str, batch: int = 1) -> dict[str, Any]:
    """Fail unless all integers and floats are the reference's; return the module's facts."""
    if isinstance(net, Program):
        program, shape = net, (batch, *net.input_shape)
        x: Any = np.random.default_rng(0).normal(0, 60, shape).astype(np.float32)
    else:
        program, x = net.program(), net.images(batch)
    runtime, reference, parity = (
        SerialRuntime(program, batch, products), ReferenceRuntime(program), Parity(),
    )  # fmt: skip
    got, fused = runtime.intermediates(x), runtime.facts["fused_tensors"]
    parity.add_all(reference.intermediates(x), got, fused)
    assert parity.mismatched == 0, parity.first_divergence
    assert len(got) + len(fused) == len(program.tensors())
    assert np.array_equal(runtime.run(x), reference.run(x))
    return runtime.facts


def planned(net: Net | Program, batch: int = 1) -> Plan:
    return make_plan(net if isinstance(net, Program) else net.program(), batch, mma=True)


# Networks


@pytest.mark.parametrize("products", ["mma", pytest.param("dp4a", marks=pytest.mark.nightly)])
def test_every_operator(products: str) -> None:
    exact(everything(), products, batch=3)


def resnet18(size: int) -> Net:
    return resnet((64, 128, 256, 512), size)


def test_parts_of_resnet_and_mobilenet_v2() -> None:
    facts = exact(mobilenet_v2(24, blocks=2), "mma")
    assert facts["fallbacks"] == [] and facts["float_tensors"] == []
    exact(resnet((16, 32), 16), "mma")


@pytest.mark.nightly
@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("net", [resnet18, mobilenet_v2])
def test_resnet18_and_mobilenet_v2_in_batches(net: Any, products: str) -> None:
    for batch, size in ((1, 96), (5, 48)):
        exact(net(size), products, batch)


@pytest.mark.nightly
@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("seed", range(20))
def test_wild_grids_and_windows(seed: int, products: str) -> None:
    net = Net((5, 9, 7), raw=seed % 2 == 0, seed=seed, wild=True)
    x = net.conv(net.input, 16, 3, strides=(2, 1))
    y = net.conv(net.lookup(x), 16, 3, groups=16)
    x = net.conv(net.add(x, y), 24, 3, dilations=(2, 2), groups=2)
    net.gemm(net.flatten(x), 11)
    exact(net, products, 1 + seed % 3)


# Layers


@pytest.mark.parametrize("products", PRODUCTS)
def test_shapes_that_fill_no_tile(products: str) -> None:
    net = Net((3, 11, 9))
    x = net.conv("x", 70, 5, strides=(2, 2), pads=(1, 2, 0, 1))
    x = net.conv(x, 33, 3, dilations=(2, 1))
    x = net.conv(x, 66, 3, groups=1, strides=(1, 2))
    net.gemm(net.flatten(net.average(x)), 130, FloatGemm)
    exact(net, products, batch=2)


def test_grouped_convolutions() -> None:
    net = Net((12, 7, 6))
    x = net.conv("x", 12, 3, groups=12, strides=(2, 1))
    x = net.conv(x, 12, 3, groups=12, dilations=(2, 2))
    net.conv(net.conv(x, 24, 3, groups=12), 8, 3, groups=4)
    reason = "groups of several channels"
    assert [f["layer"] for f in exact(net, "dp4a")["fallbacks"]] == ["layer2", "layer3"]
    steps = planned(net).steps
    assert [isinstance(s.kernel, Depthwise) for s in steps[1:5]] == [True, True, False, False]
    assert all(f["reason"] == reason for f in planned(net).fallbacks)


@pytest.mark.parametrize("first", [False, True])
def test_additions_and_tables_behind_layers(first: bool) -> None:
    net = Net((8, 5, 6))
    early, late = net.conv("x", 8, 1), net.conv("x", 8, 3)
    x = net.lookup(net.add(*((late, early) if first else (early, late))))
    net.add(x, net.conv(x, 8, 3, groups=8))
    plan = planned(net)
    # The grids of the operands differ, so that the wrong order is not exact.
    assert plan.fused == (late, "t2", "t4") and len(plan.steps) == 5
    exact(net, "mma", batch=2)


def test_tensors_of_one_pixel_are_one_tensor() -> None:
    net = Net((5, 4, 4))
    x = net.reshape(net.flatten(net.average("x")), 5, 1, 1)
    net.gemm(net.flatten(net.add(net.conv(x, 5, 1), x)), 3)
    assert len(planned(net).aliases) == 3
    exact(net, "mma", batch=2)


def test_more_dimensions_and_moves() -> None:
    net = Net((6, 4, 5), raw=False)
    x = net.shuffle(net.input)
    net.op(
        MaxPool, net.upsample(x), (6, 4, 8), kernel=(2, 3), strides=(2, 2), pads=(0, 1, 0, 1)
    )
    exact(net, "dp4a", batch=2)


def test_equal_layers_share_a_kernel() -> None:
    net = Net((16, 8, 8))
    x = net.conv(net.conv(net.conv("x", 16), 16), 16)
    plan = planned(net)
    assert len({s.kernel for s in plan.steps if isinstance(s.kernel, ImplicitGemm)}) == 1
    assert exact(net, "mma")["kernels"][1]["count"] == 3 and x == "t2"


@pytest.mark.parametrize("tile", [*MMA, *DP4A], ids=lambda tile: tile.name())
def test_every_tile(tile: Products, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "choose", lambda mma, pixels, outputs: tile)
    net = Net((20, 9, 9))
    net.gemm(net.flatten(net.conv(net.conv("x", 70, 3), 17, 2, strides=(2, 2))), 66)
    exact(net, "mma" if tile in MMA else "dp4a", batch=3)


def test_tiles_follow_the_work() -> None:
    for mma in (False, True):
        rows = [choose(mma, pixels, 64).rows for pixels in (1, 16, 1000, 10_000, 10**6)]
        assert rows == sorted(rows) and rows[0] == 16 and rows[-1] == (128 if mma else 64)
    # A block for each of 108 multiprocessors.
    assert choose(True, 128 * 107 + 1, 64).rows == 128 > choose(True, 128 * 107, 64).rows
    assert choose(True, 128 * 53 + 1, 65).rows == 128
    # The batch is part of the work.
    small, large = planned(resnet18(32)), planned(resnet18(32), batch=256)
    tiles = [max(_rows(plan)) for plan in (small, large)]
    assert tiles[0] < tiles[1]


def test_tensors_that_int32_cannot_count_are_refused() -> None:
    net = Net((16, 64, 64))
    net.conv("x", 16)
    assert planned(net, 2**15 - 1)
    with pytest.raises(
        UnsupportedError, match=r"tensor .* has 2,147,483,648 bytes at --batch 32768"
    ):
        planned(net, 2**15)


def _rows(plan: Plan) -> list[int]:
    return [s.kernel.products.rows for s in plan.steps if isinstance(s.kernel, ImplicitGemm)]


def test_a_float_island_is_refused_by_name() -> None:
    program = read_program(lowered(3001, islands=True)[0])
    with pytest.raises(UnsupportedError, match=r"in floating point .*--target onnx can hold"):
        make_plan(program, 1, mma=True)


def test_values_that_are_no_numbers_get_the_lowest_code() -> None:
    net = Net((4, 5, 3), raw=False, wild=True, seed=3)
    program, x = net.program(), net.images(1)
    x[0, :, 0] = [np.nan, np.inf, -np.inf]
    got = SerialRuntime(program, 1, "mma").intermediates(x)["t0"]
    assert np.array_equal(got, ReferenceRuntime(program).intermediates(x)["t0"])
    # fmaxf and fminf return the operand that is a number: the order decides.
    assert re.search(
        r"T\.min\(T\.max\(.*nearbyint", str(emit_cuda(program, 1, True).ir.script())
    )


# Device functions


def run_kernel(arguments: list[Argument], body: Any, arrays: list[Array]) -> Array:
    """Return the last of `arrays` behind a kernel that threads are loops of."""
    module = tvm.IRModule({"kernel": tir.function("kernel", arguments, body)})
    library = tvm.compile(serial_module(module), tvm.target.Target(host_target().llvm()))
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    library["kernel"](*tensors)
    return tensors[-1].numpy()


def fragments(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the registers of every lane, by the index formulas of the PTX ISA.

    For the 16 bytes i of A and the 8 of B that a lane has, of m16n8k32 with 8-bit codes.
    """
    of_a, of_b = np.zeros((WARP, 16), np.uint8), np.zeros((WARP, 8), np.int8)
    for lane in range(WARP):
        group, thread = lane >> 2, lane % 4
        for i in range(16):
            row = group if i < 4 or 8 <= i < 12 else group + 8
            of_a[lane, i] = a[row, thread * 4 + (i & 3) + (0 if i < 8 else 16)]
        for i in range(8):
            of_b[lane, i] = b[thread * 4 + (i & 3) + (0 if i < 4 else 16), group]
    return of_a.view(np.uint32), of_b.view(np.int32)


def test_mma_means_a_product_of_matrices() -> None:
    rng, warps = np.random.default_rng(0), 2
    a = rng.integers(0, 256, (warps, 16, 32)).astype(np.uint8)
    b = rng.integers(-128, 128, (warps, 32, 8)).astype(np.int8)
    before = rng.integers(-1000, 1000, (warps, 16, 8)).astype(np.int32)
    of_a, of_b = (np.concatenate(f) for f in zip(*map(fragments, a, b), strict=True))
    lanes = [(lane >> 2, lane % 4) for lane in range(WARP)]
    rows = np.array([[g if i < 2 else g + 8 for i in range(4)] for g, _ in lanes])
    columns = np.array([[2 * q + (i & 1) for i in range(4)] for _, q in lanes])

    def body(a: Any, b: Any, d: Any) -> None:
        with tir.blocks(1):
            codes, weights, sums = (
                tir.registers(4, "uint32"), tir.registers(2), tir.registers(4),
            )  # fmt: skip
            with tir.threads(warps * WARP) as t:
                for i in range(4):
                    tir.store(codes, a[t, i], i)
                    tir.store(sums, d[t, i], i)
                for i in range(2):
                    tir.store(weights, b[t, i], i)
            with tir.threads(warps * WARP):
                into = T.address_of(sums[0])
                found = (*(codes[i] for i in range(4)), weights[0], weights[1])
                T.evaluate(intrinsics.MMA(into, *found))
            with tir.threads(warps * WARP) as t:
                for i in range(4):
                    tir.store(d, sums[i], t, i)

    arguments = [
        Argument("a", of_a.shape, "uint32"), Argument("b", of_b.shape, "int32"),
        Argument("d", (warps * WARP, 4), "int32"),
    ]  # fmt: skip
    start, product = before, before + a.astype(np.int32) @ b.astype(np.int32)
    start, expected = (m[:, rows, columns].reshape(-1, 4) for m in (start, product))
    assert np.array_equal(run_kernel(arguments, body, [of_a, of_b, start]), expected)


def test_dp4a_and_fma_mean_what_they_say() -> None:
    rng, count = np.random.default_rng(1), 64
    codes = rng.integers(0, 256, (count, 4)).astype(np.uint8)
    weights = rng.integers(-128, 128, (count, 4)).astype(np.int8)
    total = rng.integers(-1000, 1000, count).astype(np.int32)
    dots = total + (codes.astype(np.int32) * weights).sum(1)

    def dot(x: Any, w: Any, y: Any) -> None:
        with tir.blocks(2) as block, tir.threads(count // 2) as t:
            i = block * (count // 2) + t
            tir.store(y, intrinsics.DP4A(x[i], w[i], y[i]), i)

    kinds = ("uint32", "int32", "int32")
    arguments = [Argument(n, (count,), k) for n, k in zip("xwy", kinds, strict=True)]
    arrays = [codes.view(np.uint32)[:, 0], weights.view(np.int32)[:, 0], total]
    assert np.array_equal(run_kernel(arguments, dot, arrays), dots)

    def fused(a: Any, b: Any, c: Any) -> None:
        with tir.blocks(1), tir.threads(count) as t:
            tir.store(c, FMA(a[t], b[t], c[t]), t)

    a, b = (rng.normal(size=count).astype(np.float32) for _ in range(2))
    c = -(a * b)  # nearly cancels: the product's last bits are the result
    arguments = [Argument(n, (count,), "float32") for n in "abc"]
    got = run_kernel(arguments, fused, [a, b, c])
    assert np.array_equal(got, numerics.fma(a, b, c)) and got.any()


# The rewriting


def test_threads_that_race_are_refused() -> None:
    def body(x: Any, y: Any) -> None:
        with tir.blocks(1):
            between = tir.shared(32, "uint8")
            with tir.threads(32) as t:
                tir.store(between, x[t], t)
                tir.store(y, between[31 - t], t)

    arguments = [Argument("x", (32,)), Argument("y", (32,))]
    module = tvm.IRModule({"kernel": tir.function("kernel", arguments, body)})
    with pytest.raises(ValueError, match="a race"):
        serial_module(module)


def test_fragments_that_race_are_refused() -> None:
    def body(x: Any, y: Any) -> None:
        with tir.blocks(1):
            codes, sums = tir.registers(4, "uint32"), tir.registers(4)
            with tir.threads(WARP) as t:
                for i in range(4):
                    tir.store(codes, x[t], i)
                found = [codes[i] for i in range(4)]
                T.evaluate(
                    intrinsics.MMA(T.address_of(sums[0]), *found, T.int32(0), T.int32(0))
                )
                tir.store(y, sums[0], t)

    arguments = [Argument("x", (32,), "uint32"), Argument("y", (32,), "int32")]
    module = tvm.IRModule({"kernel": tir.function("kernel", arguments, body)})
    with pytest.raises(ValueError, match="a race"):
        serial_module(module)


def test_no_thread_is_left_and_nothing_else_is_changed() -> None:
    module = emit_cuda(everything(), 1, mma=True).ir
    before, after = str(module.script()), str(serial_module(module).script())
    assert "thread_binding" in before and "thread_binding" not in after
    assert "func_call" in before and "func_call" not in after
    assert set(module.get_global_vars()) == set(serial_module(module).get_global_vars())


def test_what_is_computed_byte_by_byte() -> None:
    kinds = {
        type(s.kernel.op)
        for s in planned(everything()).steps
        if isinstance(s.kernel, Portable)
    }
    assert Conv not in kinds and len(kinds) == 12
