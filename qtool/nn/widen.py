"""Candidates that were never trained, in a prepared network: `qtool.core.zero_shot`'s rule."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from qtool.core.zero_shot import Between
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.modules.weight_quant import WeightQuantizer
from qtool.nn.prepare.spec import QuantSpec

# By the width that was never trained.
Spans = Mapping[int, Between]


def with_widths(spec: QuantSpec, weights: Spans, inputs: Spans) -> QuantSpec:
    """Return `spec` with further candidates of every inner layer, behind its own."""
    known = (spec.weight_bits,) if isinstance(spec.weight_bits, int) else spec.weight_bits
    return replace(
        spec, weight_bits=(*known, *weights), activation_bits=(*spec.activation_bits, *inputs)
    )


@torch.no_grad()
def fill(wider: nn.Module, model: nn.Module, weights: Spans, inputs: Spans) -> None:
    """Give `wider` all that `model` has, and its further candidates what lies between.

    Args:
        wider: prepared as `model` was, but `with_widths`; norms without rows.
        model: trained.
        weights: where the further widths of weights lie.
        inputs: likewise, of layers' inputs.
    """
    state, known = model.state_dict(), dict(model.named_modules())
    for path, quantizer in wider.named_modules():
        trained = known.get(path)
        if isinstance(quantizer, WeightQuantizer) and isinstance(trained, WeightQuantizer):
            own = _parameters(quantizer, trained, _new(quantizer, trained, weights))
        elif isinstance(quantizer, FakeQuantizer) and isinstance(trained, FakeQuantizer):
            spans = _new(quantizer, trained, inputs)
            points = [_zero_point(quantizer, trained, span) for span in spans]
            own = _parameters(quantizer, trained, spans)
            own["zero_point"] = torch.tensor([*trained.zero_points, *points])
        else:
            continue
        state |= {f"{path}.{name}": tensor for name, tensor in own.items()}
    wider.load_state_dict(state)
    wider.train(wider.training)  # zero points follow learned offsets


def _new(quantizer: Quantizer, trained: Quantizer, spans: Spans) -> list[Between]:
    """Return where the candidates lie that `trained` has not; the ends keep their own."""
    return [spans[bits] for bits in quantizer.bits if bits not in trained.bits]


def _parameters(
    quantizer: Quantizer, trained: Quantizer, spans: list[Between]
) -> dict[str, Tensor]:
    """Return the parameters and fixed steps of `quantizer`."""
    found: dict[str, Tensor] = dict(trained.named_parameters(recurse=False))
    if trained.bank.rows > 1:
        found = {
            name: torch.stack(
                [*rows, *(_row(name, quantizer, trained, span) for span in spans)]
            )
            for name, rows in found.items()
        }
    fixed = quantizer.named_buffers(recurse=False)
    return found | {name: steps for name, steps in fixed if name == "step"}


def _row(name: str, quantizer: Quantizer, trained: Quantizer, span: Between) -> Tensor:
    """Return a parameter's row at ``span.width``: a step so that the range is linear."""
    values, is_step = trained.get_parameter(name), name == "step"

    def value(bits: int) -> Tensor:
        row = values[trained.bank.row(bits)].double()
        if name == "offset":  # the only one whose sign counts
            return row
        return row.abs() * (sum(trained.limits(bits)) if is_step else 1)

    mean = span.mix(value(span.below), value(span.above))
    codes = sum(quantizer.limits(span.width)) if is_step else 1
    return (mean / codes).to(values.dtype)


def _zero_point(quantizer: FakeQuantizer, trained: FakeQuantizer, span: Between) -> int:
    """Return the zero point at ``span.width``: the share of the range below 0 is linear."""
    if trained.zero_points == trained.default_zero_points:
        return quantizer.default_zero_points[quantizer.windows.row(span.width)]
    shares = (trained.limits(bits) for bits in (span.below, span.above))
    below, above = (qn / (qn + qp) for qn, qp in shares)
    return round(span.mix(below, above) * ((1 << span.width) - 1))
