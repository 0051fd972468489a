"""Every argument of every operator that is captured is read, or refused by name."""

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.errors import UnsupportedError
from qtool.nn.capture.arguments import ARGUMENTS, installed
from qtool.nn.capture.capture import capture
from qtool.nn.capture.compare import compare
from qtool.nn.capture.exported import _CALLS, NEUTRAL
from qtool.nn.capture.operators import FUNCTIONS, METHODS, MODULES
from qtool.nn.prepare.admit import why_not
from qtool.nn.prepare.prepare import QuantSpec, prepare

SHAPE = (3, 8, 8)
_PYTHON = (operator.add, operator.iadd, operator.mul, operator.imul)


KNOWN = [*FUNCTIONS, *METHODS, *MODULES]


@pytest.mark.parametrize("index", range(len(KNOWN)))
def test_the_table_has_every_argument_that_torch_has(index: int) -> None:
    known = KNOWN[index]
    if known not in _PYTHON:
        assert installed(known) <= set(ARGUMENTS[known].all), known


# Arguments that `exported` leaves out at their default, and keeps the operator otherwise.
_GUARDED = {
    "add": {"alpha"}, "sub": {"alpha"}, "div": {"rounding_mode"}, "mean": {"dtype", "out"},
    "softmax": {"dtype", "half_to_float", "out"},
}  # fmt: skip


@pytest.mark.parametrize("name", _CALLS)
def test_torch_export_s_operators_have_no_other_arguments(name: str) -> None:
    packet = getattr(torch.ops.aten, name)
    wanted = {*_CALLS[name][1].split(), *NEUTRAL, *_GUARDED.get(name, ()), "out"}
    taken = []
    for overload in packet.overloads():
        arguments = {a.name for a in getattr(packet, overload)._schema.arguments}
        if set(_CALLS[name][1].split()) <= arguments:
            taken.append(arguments - wanted)
    assert taken and not any(taken)


class Net(nn.Module):
    """One operator between two convolutions; with `branch`, a case for torch.export."""

    def __init__(self, op: Callable[[Tensor], Tensor], branch: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.branch = nn.Conv2d(3, 8, 3, padding=1), branch
        if isinstance(op, nn.Module):
            self.op: Callable[[Tensor], Tensor] = op
        else:
            self.__dict__["op"] = op
        self.b, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.op(self.a(x))
        if self.branch and x.dim() != 4:
            return x
        y: Tensor = self.fc(self.b(x).mean((2, 3)))
        return y


FORMS = pytest.mark.parametrize("branch", [False, True], ids=["fx", "export"])
F = functional
RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "kept slope": lambda x: F.leaky_relu(x, negative_slope=0.4),
    "kept bounds": lambda x: F.hardtanh(x, min_val=-0.1, max_val=0.2),
    "one bound": lambda x: x.clamp(min=0.1),
    "other bound": lambda x: torch.clamp(x, max=0.1),
    "names": lambda x: torch.add(input=x, other=torch.relu(x)),
    "axis": lambda x: torch.cat([x[:, :4], torch.relu(x[:, 4:])], axis=1),  # type: ignore[call-overload]
    "pads": lambda x: F.pad(x, (1, 2, 0, 1), value=0.0),
    "window": nn.AvgPool2d((2, 1), stride=(1, 2), padding=(1, 0)),
    "largest": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "resize": lambda x: F.interpolate(x, size=(16, 24)),
    "factor": nn.Upsample(scale_factor=2, recompute_scale_factor=True),
    "eps": nn.BatchNorm2d(8, eps=0.3),
    "no weights": nn.BatchNorm2d(8, affine=False),
    "weight alone": nn.BatchNorm2d(8, bias=False),
    "same": nn.Conv2d(8, 8, 4, padding="same", dilation=1),
    "expanded": lambda x: x * x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8),
    "expanded both": lambda x: (
        x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8)
        + x[:, :, :1, :1].expand(-1, -1, 8, 8)
    ),
    "dropout off": lambda x: F.dropout(x, 0.5, training=False),
    "in place": lambda x: x.mul_(torch.sigmoid(x)),
}  # fmt: skip


@FORMS
@pytest.mark.parametrize("name", RIGHT)
def test_options_that_are_read_keep_their_meaning(name: str, branch: bool) -> None:
    model = Net(RIGHT[name], branch).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 2)
    x = torch.rand(2, *SHAPE)
    assert compare(model, capture(model, SHAPE), x) is None
    prepared = prepare(model, QuantSpec(), SHAPE)
    assert compare(model, prepared, x) is None
    assert torch.allclose(prepared.eval()(x), model(x), rtol=1e-4, atol=1e-5)


FLOATING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "alpha": (lambda x: torch.add(x, torch.relu(x), alpha=2), "add"),
    "method alpha": (lambda x: x.add(torch.relu(x), alpha=2), "add"),
    "sub alpha": (lambda x: torch.sub(x, torch.relu(x), alpha=3), "sub"),
    "rsub": (lambda x: torch.rsub(x, torch.relu(x)), "sub"),
    "rounded": (lambda x: torch.div(x, 0.2, rounding_mode="floor"), "div"),
    "constant": (lambda x: x * 1.5, "mul with a constant"),
    "mean dtype": (lambda x: x * x.mean((2, 3), True, dtype=torch.float64).float(), "mean"),
    "softmax dtype": (lambda x: F.softmax(x, 1, dtype=torch.float32), "softmax"),
    "max ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), "ceil_mode=True"),
    "max dilation": (lambda x: F.max_pool2d(x, 2, dilation=2), "dilation="),
    "avg ceil": (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), "ceil_mode=True"),
    "avg pads": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "count_include_pad=False"),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), ""),
    "smaller": (lambda x: F.interpolate(x, size=(5, 5)), "from 8x8 to 5x5"),
    "half": (lambda x: F.interpolate(x, scale_factor=1.5), "from 8x8 to 12x12"),
    "value": (lambda x: F.pad(x, (1, 1), value=0.5), "value=0.5"),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "mode=reflect"),
    "crop": (lambda x: F.pad(x, (-1, -1)), "negative pads"),
}


@FORMS
@pytest.mark.parametrize("name", FLOATING)
def test_options_without_an_integer_form_are_named(name: str, branch: bool) -> None:
    op, words = FLOATING[name]
    model = Net(op, branch).eval()
    (found,) = why_not(model, QuantSpec(), SHAPE, 5)
    assert words in found and "has no integer form" in found and "allow_float=true" in found
    assert why_not(model, QuantSpec(), SHAPE, 5, allow_float=True) == []


LOST: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "divisor": (nn.AvgPool2d(2, divisor_override=3), "divisor_override=3"),
    "divisor call": (lambda x: F.avg_pool2d(x, 2, divisor_override=5), "divisor_override=5"),
    "batch": (
        lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8), training=True),
        "statistics",
    ),
}


@FORMS
@pytest.mark.parametrize("name", LOST)
def test_options_without_any_form_are_refused(name: str, branch: bool) -> None:
    op, words = LOST[name]
    with pytest.raises(UnsupportedError, match=words):
        prepare(Net(op, branch).eval(), QuantSpec(), SHAPE)


@FORMS
def test_dropout_that_is_always_on_is_found_by_its_values(branch: bool) -> None:
    found = why_not(Net(lambda x: F.dropout(x, 0.5), branch).eval(), QuantSpec(), SHAPE, 5)
    assert "is dropout always on?" in found[0]
