"""Native, compiled and eager quantization give the same numbers, and published gradients."""

import itertools
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qtool.core.cache import cache_folder
from qtool.core.errors import UserError
from qtool.native.compiler import NoCompiler, compiled
from qtool.native.library import SOURCE, availability
from qtool.quantizers import engines
from qtool.quantizers.engines import engine
from qtool.quantizers.grid import Grid, Rule
from qtool.quantizers.uniform import uniform

needs_compiler = pytest.mark.skipif(
    availability().library is None, reason=f"native kernels: {availability().reason}"
)
SHAPES = [(4, 16, 9, 9), (3, 7), (33, 5, 3, 3), (1, 20_003)]
LIMITS = [(0, 15), (8, 7), (0, 1), (1, 1), (128, 127), (0, 255), (3, 252)]
CLIPS = [(False, math.inf), (True, math.inf), (True, 6.0)]


def values(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return values; many are ties, clip points, zeros of both signs, or far outside."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 4
    flat = x.view(-1)
    flat[::7] = 0.25 * torch.randint(-20, 20, flat[::7].shape, generator=generator)
    flat[3::11] *= 100
    flat[5::13] = -0.0
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x


@needs_compiler
def test_native_kernels_take_only_floats_in_memory() -> None:
    x, step = torch.rand(4, 3, 5, 5), torch.tensor(0.1)
    assert engines.native_rows(x, step) == 1
    wrong = (
        x.to("meta"), x.double(), x.half(), x.to_sparse(), x[:, :, ::2], torch.zeros(0),
        FakeTensorMode().from_tensor(x), x.expand(2, 4, 3, 5, 5)[0].transpose(1, 3),
    )  # fmt: skip
    assert not any(engines.native_rows(tensor, step) for tensor in wrong)
    assert not engines.native_rows(x, step.to("meta"))
    assert not engines.native_rows(x, FakeTensorMode().from_tensor(step))


def gradients(name: str, x: Tensor, step: Tensor, **settings: object) -> list[Tensor]:
    """Return x_hat and the gradients of x, step and offset by engine `name`."""
    x, step = x.clone().requires_grad_(), step.clone().requires_grad_()
    has_offset = settings.get("rule") != "clip" and not step.ndim
    offset = torch.zeros(()).requires_grad_() if has_offset else None
    with engine(name):
        y = uniform(x, step, offset=offset, **settings)  # type: ignore[arg-type]
        y.backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    assert x.grad is not None and step.grad is not None
    of_offset = torch.zeros(()) if offset is None else offset.grad
    assert of_offset is not None
    return [y.detach(), x.grad, step.grad, of_offset]


def published(
    x: Tensor, step: Tensor, qn: int, qp: int, rule: Rule, relu: bool, ceiling: float
) -> list[Tensor]:
    """Return what `gradients` does from the papers' formulas, in float64.

    Which code a value has is the forward's business: it is taken from float32.
    """
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    z = x.clamp(0, ceiling) if relu else x
    v32 = z / step
    low, high, inside = v32 < -qn, v32 > qp, (v32 >= -qn) & (v32 <= qp)
    code = v32.clamp(-qn, qp).round().double()
    v = z.double() / step.double()
    through = inside & (x > 0) & (x < ceiling) if relu else inside
    slope = torch.where(low, -qn, torch.where(high, qp, code - v if rule == "lsq" else 0))
    total = (grad * slope).sum() if not step.ndim else (grad * slope).sum_to_size(step.shape)
    outside = (grad * (low | high)).sum()
    if rule != "lsq" or step.ndim:
        outside = torch.zeros(())
    return [code * step.double(), grad * through, total, outside]


def error(got: Tensor, expected: Tensor) -> float:
    """Return the relative error in the norm."""
    return float((got.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@needs_compiler
@pytest.mark.parametrize("relu, ceiling", CLIPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_native_equals_eager(shape: tuple[int, ...], relu: bool, ceiling: float) -> None:
    x = values(shape)
    per_row = torch.rand(shape[0], *[1] * (x.ndim - 1)) * 0.3 + 0.01
    for step, (qn, qp) in itertools.product((torch.tensor(0.5), per_row), LIMITS):
        settings = {"qn": qn, "qp": qp, "relu": relu, "ceiling": ceiling}
        eager = gradients("eager", x, step, **settings)
        native = gradients("native", x, step, **settings)
        assert torch.equal(eager[0], native[0])
        if not relu:  # the sign of a zero behind a ReLU is torch's own secret
            assert torch.equal(eager[0].view(torch.int32), native[0].view(torch.int32))
        assert native[0].stride() == x.stride()
        assert torch.equal(eager[1], native[1])
        for one, other in zip(eager[2:], native[2:], strict=True):
            assert error(one, other.double()) < 1e-6


@pytest.mark.parametrize("name", ["eager", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("rule", ["lsq", "clip"])
@pytest.mark.parametrize("relu, ceiling", CLIPS)
def test_gradients_are_the_published_ones(
    name: str, rule: Rule, relu: bool, ceiling: float
) -> None:
    for shape, (qn, qp), per_row in itertools.product(SHAPES[::2], LIMITS, (False, True)):
        x = values(shape)
        step = (
            torch.rand(shape[0], *[1] * (x.ndim - 1)) + 0.1 if per_row else torch.tensor(0.3)
        )
        settings = {"qn": qn, "qp": qp, "rule": rule, "relu": relu, "ceiling": ceiling}
        got = gradients(name, x, step, **settings)
        expected = published(x, step, **settings)  # type: ignore[arg-type]
        assert error(got[0], expected[0]) < 1e-7
        assert torch.equal(got[1].double(), expected[1])
        assert error(got[2], expected[2]) < 1e-6
        assert error(got[3], expected[3]) < 1e-6


@needs_compiler
def test_the_number_of_threads_changes_nothing() -> None:
    x, step = values((16, 32, 20, 20)), torch.tensor(0.3)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients("native", x, step, qn=0, qp=15))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@needs_compiler
def test_a_loss_of_nan_stays_one() -> None:
    x = torch.tensor([1.0, math.nan, 3.0])
    for relu in (False, True):
        y = uniform(x, torch.tensor(0.5), 0, 15, relu=relu)
        assert y.isnan().tolist() == [False, True, False]


def test_what_kernels_do_not_know_runs_eagerly() -> None:
    x, step = torch.randn(4, 6, 2)[:, ::2], torch.rand(1, 3, 1) + 0.1
    assert engines.native_rows(x, step) == 0
    assert torch.equal(uniform(x, step, 4, 3), engines.forward_eager(x, step, Grid(4, 3)))
    assert uniform(x[:0], step, 4, 3).shape == (0, 3, 2)


@pytest.mark.nightly
@needs_compiler
def test_compiled_equals_eager() -> None:
    x, step = values((4, 16, 9, 9)), torch.tensor(0.3)
    for settings in (
        {"qn": 0, "qp": 15},
        {"qn": 8, "qp": 7},
        {"qn": 0, "qp": 15, "relu": True},
    ):
        eager, other = (gradients(n, x, step, **settings) for n in ("eager", "compiled"))
        assert torch.equal(eager[0], other[0]) and torch.equal(eager[1], other[1])
        assert error(eager[2], other[2].double()) < 1e-6


def test_without_a_compiler_eager_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompiler, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        compiled(SOURCE)
    program = (
        "import torch; from qtool.quantizers.uniform import uniform; "
        "from qtool.quantizers.engines import engine\n"
        "print(uniform(torch.ones(3), torch.tensor(.3), 0, 15).tolist())\n"
        "with engine('native'): pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.startswith("[0.9")
    assert "engine native: no C++ compiler (no-such-compiler) on this machine" in done.stderr


def test_code_is_not_loaded_from_a_folder_of_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QTOOL_CACHE", str(tmp_path))
    tmp_path.chmod(0o777)
    with pytest.raises(UserError, match="can be written by others"):
        cache_folder()
    (tmp_path / "file").touch()
    monkeypatch.setenv("QTOOL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set QTOOL_CACHE"):
        cache_folder()


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UserError, match="unknown engine 'natve': did you mean native"):
        with engine("natve"):
            pass


def test_an_engine_is_chosen_for_a_block_only() -> None:
    x, step = torch.rand(9), torch.tensor(0.1)
    usual, there = engines.how(x, step), []
    with engine("eager"):
        with pytest.raises(ZeroDivisionError), engine("compiled"):
            assert engines.how(x, step).engine == "compiled"
            raise ZeroDivisionError
        assert engines.how(x, step).engine == "eager"
        other = threading.Thread(target=lambda: there.append(engines.how(x, step)))
        other.start()
        other.join()
    assert there == [usual] == [engines.how(x, step)]


def test_backward_is_computed_as_forward_was(monkeypatch: pytest.MonkeyPatch) -> None:
    x, step = torch.rand(9, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    asked: list[engines.How] = []
    backward = engines.backward

    def note(*args: object) -> engines.Gradients:
        asked.append(args[-1])  # type: ignore[arg-type]
        return backward(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(engines, "backward", note)
    with engine("eager"):
        y = uniform(x, step, 0, 7)
    y.sum().backward()
    assert asked == [engines.How("eager", 0)]


def test_half_precision_is_quantized_in_float32() -> None:
    x = torch.linspace(-3, 3, 999).bfloat16()
    y = uniform(x, torch.tensor(0.013), 128, 127)
    assert y.dtype == torch.float32
    assert torch.equal(y, uniform(x.float(), torch.tensor(0.013), 128, 127))


def test_says_why_it_is_slow() -> None:
    cpu = torch.device("cpu")
    with engine("eager"):
        assert engines.why_eager(cpu) == "engine eager was chosen"
    assert engines.why_eager(cpu) == availability().reason
