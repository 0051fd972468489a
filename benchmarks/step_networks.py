"""Networks for the training step: float, by qtool, and by Brevitas, all at the same bits.

Inner layers have `BITS` bits in weights and inputs, the first and the last `ENDS`; qtool's
with `integer_only` also have 8-bit grids between layers, which Brevitas' and the others lack.
"""

import os
from dataclasses import dataclass

import torch
from torch import fx, nn

from qtool.core.selection import Selection
from qtool.models import model_entry, model_factory
from qtool.nn.control import calibrate, select
from qtool.nn.prepare.prepare import QuantSpec, prepare

BITS, ENDS = 4, 8
_LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Variant:
    """What a row measures.

    Args:
        quantizer: "float", "brevitas", or one of qtool's.
        mode: how qtool computes (`qtool.quantizers.engines`): eager, native or compiled; of
            Brevitas "eager" or "jit", its own TorchScript and C++ functions; empty for float.
        integer_only: grids on every tensor between layers.
    """

    quantizer: str
    mode: str = ""
    integer_only: bool = False

    @property
    def name(self) -> str:
        """Such as ``lsq native integer-only``; `parse` reads it."""
        glue = "integer-only" if self.integer_only else ""
        return " ".join(filter(None, (self.quantizer, self.mode, glue)))

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """Return the variant of that `name`."""
        quantizer, *rest = name.split()
        integer_only = "integer-only" in rest
        modes = [word for word in rest if word != "integer-only"]
        return cls(quantizer, *modes, integer_only=integer_only)


def build(net: str, variant: Variant) -> nn.Module:
    """Return network `net` in training mode, channels last, its grids initialised."""
    torch.manual_seed(0)
    model = model_factory(net)()
    if variant.quantizer == "brevitas":
        os.environ["BREVITAS_JIT"] = str(int(variant.mode == "jit"))  # read at its import
        model = brevitas(model)
    elif variant.quantizer != "float":
        model = qtool(model, net, variant)
    result: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return result.train()


def qtool(model: nn.Module, net: str, variant: Variant) -> nn.Module:
    """Return `model` with qtool's quantizers on."""
    spec = QuantSpec((BITS,), BITS, ENDS, quantizer=variant.quantizer)
    shape = model_entry(net).input_shape
    prepared = prepare(model, spec, shape, integer_only=variant.integer_only)
    calibrate(prepared, torch.rand(8, *shape))
    select(prepared, Selection())
    return prepared


def brevitas(model: nn.Module) -> nn.Module:
    """Return `model` with Brevitas' layers.

    ReLUs in front of layers become QuantReLU; any other layer input is quantized by the layer.
    Scales are learned, as LSQ's are: of weights (``Int8WeightPerChannelFloat``) from their
    maxima, of activations (``Uint8ActPerTensorFloat``, ``Int8ActPerTensorFloat``) from the
    percentile of the first batch, not of the first 300, which would be measured instead.
    """
    gm = fx.symbolic_trace(model)
    modules = dict(gm.named_modules())
    nodes = [node for node in gm.graph.nodes if node.op == "call_module"]
    layers = [node for node in nodes if isinstance(modules[node.target], _LAYERS)]
    quantized = set()
    for node in nodes:
        if isinstance(modules[node.target], nn.ReLU | nn.ReLU6) and set(node.users) <= set(
            layers
        ):
            # One for each call: blocks call the same ReLU twice.
            gm.add_submodule(f"{node.name}_quant", _quant_relu())
            node.target = f"{node.name}_quant"
            quantized.add(node)
    for node in layers:
        bits = ENDS if node in (layers[0], layers[-1]) else BITS
        source = None if node.args[0] in quantized else _is_signed(node, layers)
        gm.set_submodule(node.target, _quant_layer(modules[node.target], bits, source))
    gm.recompile()
    return gm


def _is_signed(node: fx.Node, layers: list[fx.Node]) -> bool:
    """True for what a linear bottleneck leaves; images and pooled ReLUs are not negative."""
    return node not in (layers[0], layers[-1])


def _quant_relu() -> nn.Module:
    from brevitas import nn as qnn

    relu: nn.Module = qnn.QuantReLU(bit_width=BITS, collect_stats_steps=1)
    return relu


def _quant_layer(layer: nn.Module, bits: int, signed: bool | None) -> nn.Module:
    """Return Brevitas' form of `layer`; `signed` of the input it quantizes, None: none."""
    from brevitas import nn as qnn
    from brevitas import quant

    settings = {
        "weight_quant": quant.Int8WeightPerChannelFloat, "weight_bit_width": bits,
        "weight_scaling_impl_type": "PARAMETER_FROM_STATS", "bias": layer.bias is not None,
    }  # fmt: skip
    if signed is not None:
        kind = quant.Int8ActPerTensorFloat if signed else quant.Uint8ActPerTensorFloat
        settings |= {
            "input_quant": kind,
            "input_bit_width": bits,
            "input_collect_stats_steps": 1,
        }
    if isinstance(layer, nn.Linear):
        new: nn.Module = qnn.QuantLinear(layer.in_features, layer.out_features, **settings)
    elif isinstance(layer, nn.Conv2d):
        new = qnn.QuantConv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,
            layer.padding, layer.dilation, layer.groups, **settings,
        )  # fmt: skip
    else:
        raise TypeError(type(layer).__name__)
    new.load_state_dict(layer.state_dict(), strict=False)
    return new
