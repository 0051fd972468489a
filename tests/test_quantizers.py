"""Every quantizer against its published equations, in float64 and plain autograd."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qtool.core.grids import activation_window
from qtool.nn.grid_fit import fit_weights
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.weight_quant import WeightQuantizer
from qtool.quantizers import QUANTIZERS, activation_quantizer, weight_quantizer
from qtool.quantizers.double_rounding import rate
from qtool.quantizers.uniform import uniform
from qtool.quantizers.weight import WeightOptions

BITS = (1, 2, 4, 8)
# Multiples of 2^-4: steps, ties and clip points are exact in float32.
STEP = 3 / 16
Reference = Callable[..., Tensor]


def through(x: Tensor, values: Tensor) -> Tensor:
    """Return `values` with the gradient of `x`."""
    return x + (values - x).detach()


def rounded(x: Tensor) -> Tensor:
    return through(x, x.round())


def scaled(s: Tensor, g: float) -> Tensor:
    """Return `s` with its gradient times `g`."""
    return (s - s * g).detach() + s * g


def close(got: Tensor | None, wanted: Tensor | None) -> bool:
    """True where the relative error, by norm, is at most 1e-6."""
    assert got is not None and wanted is not None and got.dtype == torch.float32
    return float((got.double() - wanted).norm()) <= 1e-6 * float(wanted.norm())


def ends(bits: int, signed: bool) -> tuple[int, int]:
    window = activation_window(bits, signed)
    return window.zero_point - window.lo, window.hi - window.zero_point


# Activations: (x, parameter, Qn, Qp, elements that share it) -> x_hat.


def lsq_reference(x: Tensor, s: Tensor, qn: int, qp: int, count: int) -> Tensor:
    s = scaled(s, 1 / math.sqrt(count * max(qp, 1)))
    return rounded((x / s).clamp(-qn, qp)) * s


def pact_reference(x: Tensor, alpha: Tensor, qn: int, qp: int, count: int) -> Tensor:
    top = max(qn, qp)
    clipped = torch.clamp(x, -alpha * (qn / top), alpha * (qp / top))
    return through(clipped, (clipped * top / alpha).round() * alpha / top)


def calibrated_reference(x: Tensor, alpha: Tensor, qn: int, qp: int, count: int) -> Tensor:
    top = max(qn, qp)
    return alpha * rounded((x / alpha).clamp(-qn / top, qp / top) * top) / top


def dorefa_reference(x: Tensor, alpha: Tensor, qn: int, qp: int, count: int) -> Tensor:
    top = max(qn, qp)
    return rounded(x.clamp(-qn / top, qp / top) * top) / top


ACTIVATIONS: dict[str, Reference] = {
    "lsq": lsq_reference, "lsq_plus": lsq_reference, "pact": pact_reference,
    "sat": calibrated_reference, "dorefa": dorefa_reference,
}  # fmt: skip


def activations(step: float, qn: int, qp: int) -> Tensor:
    """(4, 8, 6, 6): values inside, saturated ones, ties, and the clip points themselves."""
    torch.manual_seed(qp)
    x = torch.randn(4, 8, 6, 6) * (qn + qp) * step / 2
    exact = (
        torch.tensor([-qn, qp, 0, 0.5, 1.5, -0.5, qp - 0.5, 0.5 - qn, qp + 0.5, 1e4]) * step
    )
    flat = x.reshape(-1)
    flat[: 8 * len(exact)] = exact.repeat(8)
    return flat[torch.randperm(flat.numel())].reshape(x.shape)


def check_activation(kind: str, qn: int, qp: int, factors: Tensor) -> None:
    """Compare the gradients of `kind` where its parameter varies by `factors`."""
    grids = activation_quantizer(kind)
    fixed = grids.fixed_alpha is not None
    step = 1 / max(qn, qp) if fixed else STEP
    unit = max(qn, qp) if grids.parameter == "alpha" else 1
    x = activations(step, qn, qp).requires_grad_()
    value = (step * unit * (torch.ones_like(factors) if fixed else factors)).requires_grad_(
        not fixed
    )
    count = x.numel() // value.numel()
    upstream = torch.randn_like(x)
    uniform(x, *grids.arguments(value, None, qn, qp, count)).backward(upstream)
    twin = x.detach().double().requires_grad_()
    parameter = value.detach().double().requires_grad_()
    ACTIVATIONS[kind](twin, parameter, qn, qp, count).backward(upstream.double())
    assert close(x.grad, twin.grad)
    assert fixed or close(value.grad, parameter.grad)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation_gradients(kind: str, bits: int, signed: bool) -> None:
    check_activation(kind, *ends(bits, signed), torch.tensor(1.0))
    by_channel = torch.tensor([1.0, 2, 4, 0.5, 0.25, 8, 1, 1]).reshape(1, 8, 1, 1)
    check_activation(kind, *ends(bits, signed), by_channel)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("start", [-4.3, -0.6, 0.0, 1.1])
def test_offset_gradients(bits: int, start: float) -> None:
    top = (1 << bits) - 1
    quantizer = FakeQuantizer("l", "activation", (bits,), signed=True, kind="lsq_plus")
    step, offset = quantizer.get_parameter("step"), quantizer.get_parameter("offset")
    with torch.no_grad():
        step.fill_(STEP)
        offset.fill_(start * STEP)
    quantizer.train().selected = bits
    x = activations(STEP, top // 2, top - top // 2).requires_grad_()
    upstream = torch.randn_like(x)
    out = quantizer(x)
    out.backward(upstream)
    twin = x.detach().double().requires_grad_()
    s = step.detach().double().reshape(()).requires_grad_()
    o = offset.detach().double().reshape(()).requires_grad_()
    zero = min(max(round(-start), 0), top)
    g = 1 / math.sqrt(x.numel() * max(top - zero, 1))
    scaled_s = scaled(s, g)
    z = through(-scaled(o, g) / scaled_s, torch.tensor(float(zero), dtype=torch.float64))
    wanted = rounded(torch.clamp(twin / scaled_s, -z, top - z)) * scaled_s
    wanted.backward(upstream.double())
    assert torch.equal(out.double(), wanted) and quantizer.zero_points == (zero,)
    assert close(x.grad, twin.grad)
    assert s.grad is not None and close(step.grad, s.grad.reshape(1, 1))
    assert o.grad is not None and close(offset.grad, o.grad.reshape(1))


# Weights: (w, bits, axes that share a scale, scale) -> w_hat.


def normal(w: Tensor, axes: tuple[int, ...]) -> Tensor:
    return w.tanh() / w.tanh().abs().amax(axes, keepdim=True)


def lsq_weight(w: Tensor, bits: int, axes: tuple[int, ...], step: Tensor) -> Tensor:
    top = max((1 << (bits - 1)) - 1, 1)
    s = scaled(step, 1 / math.sqrt(w.numel() / step.numel() * top))
    if bits == 1:
        return w - w.detach() + torch.where(w >= 0, s, -s)
    return rounded((w / s).clamp(-top, top)) * s


def dorefa_weight(w: Tensor, bits: int, axes: tuple[int, ...], step: Tensor) -> Tensor:
    n, t = (1 << bits) - 1, normal(w, axes)
    values = 2 * rounded(n * (t / 2 + 0.5)) / n - 1
    if bits == 1:
        return through(w, values * w.abs().mean(axes, keepdim=True))
    return values


def any_precision_weight(w: Tensor, bits: int, axes: tuple[int, ...], step: Tensor) -> Tensor:
    n, t = (1 << bits) - 1, normal(w, axes)
    mean = w.abs().mean(axes, keepdim=True).detach()
    return mean * (2 * rounded(n * (t / 2 + 0.5)) / n - 1)


def sat_weight(w: Tensor, bits: int, axes: tuple[int, ...], step: Tensor) -> Tensor:
    levels, half = 1 << bits, (normal(w, axes) + 1) / 2
    lowest = 1 if bits == 8 else 0  # -128 is not used
    q = through(half, (levels * half).floor().clamp(lowest, levels - 1) / levels)
    values = 2 * q - 1
    area = math.prod(w.shape[2:])
    return values / (math.sqrt(w.shape[0] * area) * values.detach().std())


def sat_centered_weight(w: Tensor, bits: int, axes: tuple[int, ...], step: Tensor) -> Tensor:
    levels, half = 1 << bits, (normal(w, axes) + 1) / 2
    cell = through(levels * half, (levels * half).floor().clamp(0, levels - 1))
    values = (2 * cell + 1) / levels - 1
    return values / (math.sqrt(w.shape[0] * math.prod(w.shape[2:])) * values.detach().std())


def double_rounding_weight(
    w: Tensor, bits: int, axes: tuple[int, ...], step: Tensor
) -> Tensor:
    gap, top = 8 - bits, max((1 << (bits - 1)) - 1, 1)
    rate = {0: 1.0, 4: 0.01, 6: 0.001, 7: 0.0005}[gap]
    if bits > 1:
        step = scaled(step, rate / math.sqrt(w.numel() / step.numel() * top))
    stored = rounded((w / step).clamp(-127, 127))
    if bits == 1:
        size = step * stored.abs().mean(axes, keepdim=True)
        return through(w, torch.where(stored >= 0, size, -size))
    return rounded((stored / 2**gap).clamp(-top, top)) * step * 2**gap


WEIGHTS: dict[str, Reference] = {
    "lsq": lsq_weight, "dorefa": dorefa_weight, "any_precision": any_precision_weight,
    "sat": sat_weight, "sat_centered": sat_centered_weight,
    "double_rounding": double_rounding_weight,
}  # fmt: skip


def weights(shape: tuple[int, ...], kind: str) -> Tensor:
    """Values inside; ties and clip points where there is a step; the largest twice."""
    torch.manual_seed(len(shape))
    w = torch.randn(shape)
    codes = torch.tensor([-127, 127, 7, -7, 1, -1, 0, 0.5, -1.5, 2.5, 7.5, 1000])
    flat = w.reshape(-1)
    if kind == "lsq":
        flat[: 2 * len(codes)] = codes.repeat(2) * STEP
        return flat[torch.randperm(flat.numel())].reshape(shape)
    if kind == "double_rounding":
        # Ties of either rounding, of both; where either clips.
        codes = torch.tensor(
            [8, -24, 120, 32, -96, 0.5, -1.5, 7.5, 96.5, 112, -127, 127.25, 1e3]
        )
        flat.mul_(8)
        flat[: 2 * len(codes)] = codes.repeat(2) * STEP
        return flat[torch.randperm(flat.numel())].reshape(shape)
    # t = 0 lies between two codes, exactly; 20 has tanh 1 in float32, 12 almost.
    flat[:6] = torch.tensor([4.0, -4.0, 0.0, 3.0, 0.0, -2.0])
    if len(shape) == 2:
        flat[7:9] = torch.tensor([20.0, 12.0])
    return w


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 40)])
def test_weight_gradients(
    kind: str, bits: int, shape: tuple[int, ...], per_channel: bool
) -> None:
    w = weights(shape, kind).requires_grad_()
    options = WeightOptions(per_channel, rescale=True)
    quantizer = WeightQuantizer("l", (bits,), shape[0], kind=kind, options=options)
    factors = 2.0 ** torch.arange(shape[0]) if per_channel else torch.ones(1)
    if quantizer.learned:
        quantizer.get_parameter("step").data.copy_(STEP * factors[None])
    upstream = torch.randn_like(w)
    out = quantizer.quantize_at(w, bits)
    out.backward(upstream)
    twin = w.detach().double().requires_grad_()
    step = (STEP * factors).double().reshape(-1, *[1] * (w.ndim - 1)).requires_grad_()
    axes = tuple(range(1 if per_channel else 0, w.ndim))
    wanted = WEIGHTS[kind](twin, bits, axes, step)
    wanted.backward(upstream.double())
    assert close(out.detach(), wanted.detach())
    assert close(w.grad, twin.grad)
    if quantizer.learned:
        # One bit of Double Rounding has a constant scale.
        assert (step.grad is None) == ((kind, bits) == ("double_rounding", 1))
        wanted_step = None if step.grad is None else step.grad.reshape(1, -1)
        got_step = quantizer.step.grad
        assert got_step is wanted_step is None or close(got_step, wanted_step)
    codes = out.detach() / quantizer.scale(bits, w.detach()).reshape(step.shape)
    assert float((codes - codes.round()).abs().max()) < 1e-4


def codes_at(quantizer: WeightQuantizer, w: Tensor, bits: int) -> Tensor:
    """Return the codes that `quantizer` trains at `bits`, like `w`."""
    with torch.no_grad():
        scale = quantizer.scale(bits, w).reshape(-1, *[1] * (w.ndim - 1))
        return (quantizer.quantize_at(w, bits) / scale).round()


# From the codes of `stored` bits those of b: floors, and the middles of floored cells.
NARROWED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "double_rounding": lambda stored, b: torch.where(stored >= 0, 1, -1) if b == 1 else (
        (stored / 2 ** (8 - b)).round().clamp(1 - 2 ** (b - 1), 2 ** (b - 1) - 1)
    ),
    "sat": lambda stored, b: (stored / 2 ** (8 - b)).floor(),
    "sat_centered": lambda stored, b: 2 * ((stored - 1) / 2 ** (8 - b)).floor() + 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_codes_nest_where_the_quantizer_says_so(kind: str) -> None:
    rule = weight_quantizer(kind)
    torch.manual_seed(5)
    w = torch.randn(6, 40, 3, 3) * 0.7
    widths = tuple(range(rule.widest, 0, -1))
    quantizer = WeightQuantizer("l", widths, len(w), kind=kind)
    fit_weights(quantizer, w)
    widest = codes_at(quantizer, w, rule.stored or rule.widest)
    nests = True
    for bits in widths:
        codes = codes_at(quantizer, w, bits)
        if rule.stored:
            assert torch.equal(codes, NARROWED[kind](widest, bits).to(codes.dtype)), bits
        pairs = torch.stack([widest.flatten(), codes.flatten()]).unique(dim=1)
        nests = nests and pairs.shape[1] == len(widest.unique())
    assert nests == (rule.stored > 0)


def test_learning_rates_of_steps_fall_with_the_bits() -> None:
    """The paper's examples: 1 at 8 bits, 0.1 at 6, 0.01 at 4; Eq. 7 at odd distances."""
    assert [rate(bits) for bits in (8, 7, 6, 5, 4, 2)] == pytest.approx(
        [1, 0.5, 0.1, 0.05, 0.01, 0.001]
    )


@pytest.mark.parametrize("bits", [(8, 4, 2), (4,), (1,), (2, 1)])
def test_one_step_serves_every_width(bits: tuple[int, ...]) -> None:
    quantizer = WeightQuantizer("l", bits, 4, kind="double_rounding")
    torch.manual_seed(7)
    w = torch.randn(4, 64)
    fit_weights(quantizer, w)
    assert quantizer.step.shape == (1, 4)
    # The float weights span the windows: neither all clipped nor all in a few codes.
    largest = quantizer.rule.source(w, quantizer.step[0]).abs().amax(1)
    assert (largest > 60).all()
    for width in bits:
        error = (quantizer.quantize_at(w, width) - w).square().mean()
        assert error < {8: 0.02, 4: 0.05, 2: 0.3, 1: 0.5}[width]
