"""Every vector unit against `qtool.core.numerics`; those that this CPU lacks by their code."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from conv_cases import CASES, Case, Convolution, drawn
from kernel_calls import Call, compiled, cpu_for, module, run
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.vectors.base import Vectors
from passes.emit.tvm.cpu.vectors.units import UNITS, vectors
from qtool.core import numerics

Array = np.ndarray[Any, Any]


@pytest.fixture(params=sorted(UNITS))
def unit(request: pytest.FixtureRequest) -> tuple[Vectors, str]:
    """A unit and a CPU to compile for that this one is compatible with."""
    return vectors(request.param), cpu_for(request.param)


def applied(
    method: Callable[..., Any],
    inputs: Sequence[Array],
    kind: str,
    parts: int = 1,
    name: str = "f",
) -> Call:
    """Return a kernel for the `parts` vectors that `method` makes of each row of `inputs`."""
    count, lanes = len(inputs[0]), int(kind.split("x")[1])

    def body(*buffers: Any) -> None:
        with tir.loop(count) as i:
            rows = [
                tir.let(tir.load(b, i * a.shape[1], a.shape[1]))
                for b, a in zip(buffers[:-1], inputs, strict=True)
            ]
            results = method(*rows)
            for j, result in enumerate(results if parts > 1 else [results]):
                tir.store(buffers[-1], (i * parts + j) * lanes, result, lanes)

    arrays = [a.reshape(-1) for a in inputs]
    arrays.append(np.zeros(count * parts * lanes, kind.split("x")[0]))
    pointers = [(f"p{i}", str(a.dtype)) for i, a in enumerate(arrays)]
    return Call(tir.function(name, pointers, body), arrays)


def apply(
    unit: tuple[Vectors, str], method: Callable[..., Any], inputs: Sequence[Array], kind: str
) -> Array:
    """Return the vector that `method` makes of each row of vectors in `inputs`."""
    return run([applied(method, inputs, kind)], unit[1])[0][-1].reshape(len(inputs[0]), -1)


def operands(rng: np.random.Generator, lanes: int) -> tuple[Array, Array, Array]:
    """Sums, codes and weights, among them the largest products of either sign."""
    x = rng.integers(0, 256, (40, 4 * lanes)).astype(np.uint8)
    w = rng.integers(-128, 128, (40, 4 * lanes)).astype(np.int8)
    x[:10], w[:5], w[5:10] = 255, 127, -128
    return rng.integers(-(2**30), 2**30, (40, lanes)).astype(np.int32), x, w


def products(x: Array, w: Array, group: int) -> Array:
    both = x.astype(np.int64) * w.astype(np.int64)
    return both.reshape(len(x), -1, group).sum(2)


def test_dot_never_saturates(unit: tuple[Vectors, str]) -> None:
    own, n = unit[0], unit[0].lanes
    acc, x, w = operands(np.random.default_rng(0), n)
    got = apply(unit, own.dot, (acc, x, w), f"int32x{n}")
    assert np.array_equal(got, acc + products(x, w, 4))


def test_a_step_of_a_kernel_leaves_its_offset_to_the_bias(unit: tuple[Vectors, str]) -> None:
    own, n = unit[0], unit[0].lanes
    acc, x, w = operands(np.random.default_rng(1), n)
    x = np.ascontiguousarray(x[:, :4])

    def step(acc: Any, x: Any, w: Any) -> Any:
        code = tir.let(tir.reinterpret(x, "int32"))
        return own.accumulate(acc, own.prepare_x(code), own.prepare_w(w))

    got = apply(unit, step, (acc, x, w), f"int32x{n}")
    codes = np.tile(x.astype(np.int64) - own.x_offset, (1, n))
    assert np.array_equal(got, acc + products(codes, w, 4))


def test_dot16_wraps(unit: tuple[Vectors, str]) -> None:
    own, n = unit[0], unit[0].lanes
    if not hasattr(own, "dot16"):
        pytest.skip(f"{own.name} has no dot16")
    rng = np.random.default_rng(2)
    x, w = (rng.integers(-(2**15), 2**15, (40, 2 * n)).astype(np.int16) for _ in range(2))
    x[:5], w[:5] = -(2**15), -(2**15)
    acc = rng.integers(-(2**31), 2**31, (40, n)).astype(np.int32)
    got = apply(unit, own.dot16, (acc, x, w), f"int32x{n}")
    assert np.array_equal(got, (acc + products(x, w, 2)).astype(np.int32))


def test_halves_round_to_even(unit: tuple[Vectors, str]) -> None:
    own, n, rng = unit[0], unit[0].lanes, np.random.default_rng(3)
    halves = rng.integers(-(2**12), 2**12, (30, n)) + 0.5
    large = rng.uniform(-(2.0**30), 2.0**30, (30, n))
    near = np.nextafter(halves.astype(np.float32), np.float32(0))
    x = np.concatenate([halves, large, near, [[2.0**30] * n, [-(2.0**30)] * n]])
    x = x.astype(np.float32)
    got = apply(unit, own.round, [x], f"int32x{n}")
    assert np.array_equal(got, np.rint(x).astype(np.int32))


def blocks(flat: Array, n: int) -> Array:
    """Return (rows, part j, lane 4 k + t) of bytes 16 k + 4 j + t."""
    return flat.reshape(len(flat), n // 4, 4, 4).transpose(0, 2, 1, 3).reshape(len(flat), 4, n)


def test_pack_saturates(unit: tuple[Vectors, str]) -> None:
    own, n, rng = unit[0], unit[0].lanes, np.random.default_rng(4)
    parts = [rng.integers(-400, 400, (40, n)).astype(np.int32) for _ in range(4)]
    for part in parts:
        part[:8] = rng.choice([-(2**30), 2**30, 2**15, 2**15 - 1, -(2**15), 65536], (8, n))

    def added(zero: int) -> Callable[..., Any]:
        return lambda *p: own.add_saturated(p, T.broadcast(T.int16(zero), 2 * n))

    zeros = (0, 3, 128, 255)
    methods = [lambda *p: own.pack(p), *(added(zero) for zero in zeros)]
    methods.append(lambda *p: own.transpose(own.pack(p)))
    calls = [
        applied(method, parts, f"uint8x{4 * n}", name=f"f{i}")
        for i, method in enumerate(methods)
    ]
    found = [after[-1].reshape(40, 4 * n) for after in run(calls, unit[1])]
    sums = np.stack(parts, 1).astype(np.int64)
    for zero, got in zip((0, *zeros), found[:-1], strict=True):
        assert np.array_equal(blocks(got, n), np.clip(sums + zero, 0, 255)), zero
    assert np.array_equal(found[-1].reshape(sums.shape), np.clip(sums, 0, 255))


def test_interleave_puts_a_byte_of_each_into_every_dword(unit: tuple[Vectors, str]) -> None:
    own, n, rng = unit[0], unit[0].lanes, np.random.default_rng(5)
    parts = [rng.integers(0, 256, (5, 4 * n)).astype(np.uint8) for _ in range(4)]
    call = applied(lambda *p: own.interleave(p), parts, f"uint8x{4 * n}", 4)
    want = np.stack([blocks(part, n) for part in parts], -1)
    assert np.array_equal(run([call], unit[1])[0][-1].reshape(want.shape), want)


def test_fma_rounds_once(unit: tuple[Vectors, str]) -> None:
    own, n, rng = unit[0], unit[0].lanes, np.random.default_rng(6)
    a, b, c = (rng.standard_normal((200, n)).astype(np.float32) for _ in range(3))
    c[:100] = -(a * b)[:100]
    got = apply(unit, own.fma, (a, b, c), f"float32x{n}")
    want = numerics.fma(a, b, c)
    assert np.array_equal(got, want)
    assert not np.array_equal(want, a * b + c)


def test_convolutions_equal_the_reference(unit: tuple[Vectors, str]) -> None:
    cases = [*CASES, *(drawn(seed) for seed in range(4))]
    convolutions = [Convolution(case, unit[0], i) for i, case in enumerate(cases)]
    calls = [c.call(f"kernel{i}") for i, c in enumerate(convolutions)]
    for convolution, after in zip(convolutions, run(calls, unit[1]), strict=True):
        convolution.check(after)


def test_the_cases_hold_what_they_are_for() -> None:
    unit = vectors("avx512_vnni")
    found = [Convolution(case, unit, i) for i, case in enumerate(CASES)]
    assert any(c.spec().form.clamp for c in found)
    halves = [
        np.abs(c.acc.astype(np.float32) * c.factor[:, None, None]) % 1 == 0.5 for c in found
    ]
    assert sum(h.sum() for h in halves) > 100
    # Two products in a row do not fit in int16, where instructions of old saturate.
    assert max(int(np.abs(c.acc).max()) for c in found) > 9 * 128 * 255 * 64


def assembly(name: str, **target: Any) -> str:
    """Return the code of a kernel, without TVM's around it."""
    unit = vectors(name)
    tile = (1, min(14, unit.accumulators(2) // 2), 2)
    case = Case(64, 64, (28, 28), tile=tile, residual=1)
    call = Convolution(case, unit, 0).call("kernel0")
    # Called twice, lest LLVM moves it into its caller, which checks arguments.
    library = compiled(module([call, call]), **target)
    text = library.mod.inspect_source("asm")
    found = re.findall(r"\n(\.L_internal_kernel0:.*?)\n\.Lfunc_end", text, re.S)
    assert found, text[:500]
    return re.sub(r"\n\s*\.(loc|cfi).*", "", "\n".join(found))


def innermost(code: str, instruction: str) -> str:
    """Return the shortest loop with an instruction."""
    lines, labels, loops = code.split("\n"), {}, []
    for i, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = i
        for target in re.findall(r"\s(\.L\w+)$", line):
            if target in labels:
                loops.append("\n".join(lines[labels[target] : i + 1]))
    return min((loop for loop in loops if instruction in loop), key=len)


ARM = {"mtriple": "aarch64-linux-gnu"}
RISCV = {"mtriple": "riscv64-linux-gnu", "mattr": ["+m", "+a", "+f", "+d", "+v"]}
CODE: list[tuple[str, dict[str, Any], str]] = [
    ("avx512_vnni", {"mcpu": "cascadelake"}, r"vpdpbusd\t.*%zmm"),
    ("avx_vnni", {"mcpu": "alderlake"}, r"{vex}\tvpdpbusd\t.*%ymm"),
    ("avx2", {"mcpu": "haswell"}, r"vpmaddwd\t.*%ymm"),
    ("sse2", {"mcpu": "x86-64-v3"}, r"vpmaddwd\t.*%xmm"),
    ("neon_dot", ARM | {"mcpu": "cortex-a76"}, r"sdot\tv\d+\.4s, v\d+\.16b, v\d+\.4b\[0\]"),
    (
        "neon_dot",
        ARM | {"mcpu": "neoverse-n1"},
        r"sdot\tv\d+\.4s, v\d+\.16b, v\d+\.4b\[0\]",
    ),
    ("neon_i8mm", ARM | {"mcpu": "neoverse-v1"}, r"usdot\tv\d+\.4s"),
    ("portable", ARM | {"mcpu": "generic"}, r"mla\tv\d+\.4s"),
    ("portable", RISCV, r"vmacc\.vv"),
]


@pytest.mark.parametrize("name, target, instruction", CODE)
def test_the_code_is_what_the_unit_is_for(
    name: str, target: dict[str, Any], instruction: str
) -> None:
    code = assembly(name, **target)
    assert re.search(instruction, code)
    assert not re.search(r"\t(callq?|blr?|jalr?)\t", code)
    assert "vpmaddubsw" not in code
    if name == "portable":
        return
    used = re.search("dpbusd|pmaddwd|sdot", instruction)
    assert used
    loop = innermost(code, used[0])
    unit = vectors(name)
    assert len(re.findall(used[0], loop)) >= min(28, unit.accumulators(2) // 2 * 2)
    assert not re.search(r"%rsp|\[sp", loop), "a tile by the rule stays in registers"


def test_the_vex_form_multiplies_the_codes_as_unsigned() -> None:
    written, dots = {}, 0
    for line in assembly("avx_vnni", mcpu="alderlake").split("\n"):
        if dot := re.search(r"vpdpbusd\t.*, (%ymm\d+), %ymm\d+$", line):
            assert written[dot[1]] == "vpbroadcastd", line
            dots += 1
        elif other := re.search(r"\t(v\w+)\t.*(%ymm\d+)$", line):
            written[other[2]] = other[1]
    assert dots >= 12


def test_portable_code_is_scalar_at_worst() -> None:
    plain = {"mtriple": "riscv64-linux-gnu", "mattr": ["+m", "+a", "+f", "+d"]}
    assert not re.search(r"\tcall\t", assembly("portable", **plain))
