"""Prototypes for an embedding at a pair of bits: the network that answers with a class.

Its embedding has the integers of the run's at that pair; the layer of prototypes behind it
(`qtool.nn.prototype_head`) reads them on the grid that they have already.
"""

import torch
from torch import Tensor

from qtool.core.errors import UserError
from qtool.core.selection import LayerBits, Selection
from qtool.data.images import DataSet
from qtool.frontends.mebqat.transplant import copy_embedding
from qtool.networks import bits_content, build_float, load_deployed, load_float, quant_spec
from qtool.nn.control import bit_costs, select, selected_bits
from qtool.nn.prepare.prepare import prepare
from qtool.nn.prototype_head import WEIGHT_BITS, fit_head, head_weights, output_quantizer
from qtool.nn.prototypes import prototypes
from qtool.quantizers import QUANTIZERS, weight_quantizer
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import Config
from qtool.training.evaluation import predict


def check_pn(config: Config) -> None:
    """Refuse what no layer of prototypes can follow."""
    if not can_follow(config):
        kind = config.weight_quantizer or config.quantizer
        known = [name for name in QUANTIZERS if weight_quantizer(name).learned]
        raise UserError(
            f"recipe {config.name}: {kind} gives weights another size, so that prototypes "
            f"cannot be a layer's weights: train with weight_quantizer {', '.join(known)}"
        )


def can_follow(config: Config) -> bool:
    """True where a layer of prototypes can be behind the recipe's embedding."""
    return weight_quantizer(config.weight_quantizer or config.quantizer).learned


def give_prototypes(source: Run, run: Run, bits: LayerBits, data: DataSet) -> None:
    """Make `run` that of `source` with the prototypes of the support images; saves all.

    Args:
        source: of an embedding.
        run: new and empty.
        bits: the pair.
        data: support images.
    """
    selection, network = Selection(default=bits), build_float(run)
    old = load_deployed(source, selection)
    embedded = predict(old, data.train)
    layers = {renamed(run.config, n): b for n, b in selected_bits(old, selection).items()}
    grid = output_quantizer(old)
    layers[_prefix(run.config) + "head"] = LayerBits(WEIGHT_BITS, grid.bits[0])
    new = prepare(network, quant_spec(run.config, layers), run.input_shape)
    copy_embedding(old, new)
    fit_head(new, _centres(embedded, data), embedded)
    select(new, Selection())
    run.save_bits(bits_content(bit_costs(new, run.input_shape, Selection())))
    run.save_weights(Stage.FLOAT, _float_state(source, run.config, data))
    run.save_weights(Stage.MODEL, new.state_dict())


def _prefix(config: Config) -> str:
    """Return where the recipe's network is inside what normalises its images."""
    return "network." if config.mean else ""


def renamed(config: Config, name: str) -> str:
    """Return what a layer or tensor of the embedding is called with prototypes behind it."""
    prefix = _prefix(config)
    inside = prefix and not name.startswith(prefix)
    return name if inside else f"{prefix}embedding.{name.removeprefix(prefix)}"


def _centres(embedded: Tensor, data: DataSet) -> Tensor:
    return prototypes(embedded, torch.from_numpy(data.train.labels), data.classes)


def _float_state(source: Run, config: Config, data: DataSet) -> dict[str, Tensor]:
    """Return the state of the float network: its embeddings have prototypes of their own."""
    floats = source.load_weights(Stage.FLOAT)
    weight, bias = head_weights(_centres(predict(load_float(source), data.train), data))
    head = f"{_prefix(config)}head"
    state = {renamed(config, name): tensor for name, tensor in floats.items()}
    return state | {f"{head}.weight": weight, f"{head}.bias": bias}
