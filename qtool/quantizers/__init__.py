"""Quantizers: functions from floats to a grid and back, with their published gradients.

By name, each for weights and for layer inputs. Importing this module does not import torch.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from qtool.core.errors import unknown_name

if TYPE_CHECKING:
    from qtool.quantizers.activation import ActivationQuantizer
    from qtool.quantizers.weight import WeightQuantizer


@dataclass(frozen=True)
class Entry:
    """Where a quantizer's two halves are: modules of this package.

    Args:
        weight: has ``WEIGHT``, a `WeightQuantizer` class.
        activation: has ``ACTIVATION``, an `ActivationQuantizer`.
        summary: one line.
    """

    weight: str
    activation: str
    summary: str


QUANTIZERS = {
    "lsq": Entry("lsq", "lsq", "learned step sizes"),
    "lsq_plus": Entry("lsq", "lsq_plus", "lsq; signed inputs have a learned offset"),
    "pact": Entry("lsq", "pact", "learned clipping of inputs; weights as lsq"),
    "dorefa": Entry("dorefa", "dorefa", "tanh-normalised weights, inputs clipped at 1"),
    "sat": Entry("sat", "sat", "modified dorefa weights, pact inputs, scale-adjusted"),
    "sat_centered": Entry(
        "sat_centered", "sat", "sat, every weight in the middle of its cell"
    ),
    "double_rounding": Entry(
        "double_rounding", "lsq", "8-bit codes that every width is rounded from; lsq inputs"
    ),
    "any_precision": Entry("any_precision", "dorefa", "dorefa weights times mean |w|"),
}


def weight_quantizer(name: str) -> "type[WeightQuantizer]":
    """Return how quantizer `name` treats weights."""
    found: type[WeightQuantizer] = getattr(_module(_entry(name).weight), "WEIGHT")  # noqa: B009
    return found


def activation_quantizer(name: str) -> "ActivationQuantizer":
    """Return how quantizer `name` treats layer inputs."""
    found: ActivationQuantizer = getattr(_module(_entry(name).activation), "ACTIVATION")  # noqa: B009
    return found


def _entry(name: str) -> Entry:
    if name not in QUANTIZERS:
        raise unknown_name("quantizer", name, QUANTIZERS)
    return QUANTIZERS[name]


def _module(name: str) -> object:
    return import_module(f"qtool.quantizers.{name}")
