"""What `qtool bops` counts: a named network at given bits, or a deployed ONNX file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtool.core.cost import (
    FLOAT_BITS,
    LayerCost,
    format_count,
    total_bops,
    total_macs,
    with_bits,
)
from qtool.core.errors import UserError
from qtool.core.selection import LayerBits, Selection, read_selection


def count(
    model: str, bits: str | None, first_last: int | None, shape: str | None
) -> tuple[list[LayerCost], str]:
    """Return the layers' costs and a title.

    Args:
        model: a model's name, ``package.module:factory``, or the path of a deployed file.
        bits: what `read_selection` reads; None is floating point (a file's own bits).
        first_last: bits of the first and last layer.
        shape: ``CxHxW``; None is the model's usual image.

    Raises:
        UserError: unknown model, malformed shape, layers that do not exist.
    """
    from qtool.checking.models import suffixes

    if model.endswith(suffixes()):
        return _count_file(Path(model), bits, first_last, shape), model
    from qtool.models import model_entry, model_factory
    from qtool.models.macs import count_macs

    size = model_entry(model).input_shape if shape is None else parse_shape(shape)
    if not size:
        raise UserError(
            f"model {model}: image size unknown; give --input CxHxW, or the factory an "
            "attribute input_shape = (C, H, W)"
        )
    selection = Selection(default=FLOAT_BITS) if bits is None else read_selection(bits)
    macs = count_macs(model_factory(model)(in_channels=size[0]), size)
    title = [model, "x".join(map(str, size)), bits or "float"]
    if first_last is not None:
        title.append(f"first and last {first_last}/{first_last}")
    return _costs(macs, selection, first_last), ", ".join(title)


def _costs(
    macs: Sequence[tuple[str, int]], selection: Selection, first_last: int | None
) -> list[LayerCost]:
    exact = selection.resolve(name for name, _ in macs)
    if exact.default is None:
        costs = with_bits(macs, FLOAT_BITS, None)
    else:
        costs = with_bits(macs, exact.default, first_last)
    return [replace(cost, bits=exact.layers.get(cost.name, cost.bits)) for cost in costs]


def _count_file(
    path: Path, bits: str | None, first_last: int | None, shape: str | None
) -> list[LayerCost]:
    from qtool.checking.models import open_models

    models = open_models([path])
    several = [a.pair for model in models for a in model.ordered if a.pair is not None]
    if first_last is not None or shape is not None or (bits is not None and not several):
        raise UserError(
            f"{path}: a file has its own bits and input; drop --bits, --first-last, --input"
        )
    if several:
        models = open_models([path], bits)
        if bits is None or len(models) > 1:
            raise UserError(
                f"{path} holds several pairs: name one with --bits, of {', '.join(several)}"
            )
    facts = models[0].facts
    return [
        LayerCost(name, facts["layer_macs"][name], LayerBits(*pair))
        for name, pair in facts["layers"].items()
    ]


def parse_shape(text: str) -> tuple[int, int, int]:
    """Parse ``3x224x224``."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--input {text!r}: expected CHANNELSxHEIGHTxWIDTH such as 3x224x224")
    return int(parts[0]), int(parts[1]), int(parts[2])


def describe_count(costs: Sequence[LayerCost]) -> dict[str, Any]:
    """Return totals and layers as JSON values."""
    return {
        "bops": total_bops(costs),
        "macs": total_macs(costs),
        "layers": {
            cost.name: {"macs": cost.macs, "bits": [cost.bits.weight, cost.bits.activation]}
            for cost in costs
        },
    }


def count_text(costs: Sequence[LayerCost]) -> str:
    """Return ``5.394 G (5,394,053,120 from 300,774,272 MACs)``."""
    bops = total_bops(costs)
    return f"{format_count(bops)} ({bops:,} from {total_macs(costs):,} MACs)"
