"""A classifier fine-tuned to a user's classes at a pair of bits (MEBQAT-MAML).

What is deployed: the adapted weights and steps, and BatchNorm with the statistics of the
support images.
"""

import torch

from qtool.core.errors import UserError
from qtool.core.pairs import deployable
from qtool.core.selection import LayerBits, Selection
from qtool.data.batches import to_batch
from qtool.data.images import DataSet
from qtool.frontends.mebqat.inner_loop import fine_tuned, settle_on
from qtool.frontends.mebqat.transplant import copy_layers
from qtool.networks import bits_content, build_float, load_deployed, quant_spec
from qtool.nn.control import bit_costs, select, selected_bits
from qtool.nn.prepare.prepare import prepare
from qtool.quantizers import weight_quantizer
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import Config
from qtool.settings.episodes import MamlConfig


def check_maml(source: Run, data: DataSet) -> None:
    """Refuse support images that the network has no logits for."""
    if data.classes != source.classes:
        raise UserError(
            f"run {source.folder} tells {source.classes} classes apart, the support folder "
            f"has {data.classes}: expected {source.classes} folders of images"
        )


def has_file(config: Config, bits: LayerBits) -> bool:
    """True where a network adapted to `bits` can be exported: int8 holds its weights."""
    kind = weight_quantizer(config.weight_quantizer or config.quantizer)
    return deployable(bits) and bits.weight <= kind.widest


def give_weights(source: Run, run: Run, bits: LayerBits, data: DataSet) -> None:
    """Make `run` what `source` becomes by fine-tuning on the support images; saves all.

    Args:
        source: of a classifier.
        run: new and empty.
        bits: the pair.
        data: support images.
    """
    config, selection = source.settings(MamlConfig), Selection(default=bits)
    old = load_deployed(source, selection)
    x, labels = to_batch(data.train, slice(None))
    old.train()
    settle_on(old, x, fine_tuned(old, x, labels, config.inner_steps, config.inner_lr))
    network = build_float(run)
    layers = selected_bits(old, selection)
    new = prepare(network, quant_spec(run.config, layers), run.input_shape)
    copy_layers(old, new)
    select(new, Selection())
    run.save_bits(bits_content(bit_costs(new, run.input_shape, Selection())))
    with torch.no_grad():
        run.save_weights(Stage.FLOAT, network.state_dict())
        run.save_weights(Stage.MODEL, new.state_dict())
