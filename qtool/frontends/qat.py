"""Quantization-aware training at fixed bits, from scratch or from float weights.

1. The float network: `weights`, or `float_epochs` of training, or as the seed initialised it.
2. Quantizers at exactly the bits of the recipe, uniform or by layer; steps start
   where the squared error on training images is least.
3. Weights and steps are trained together with the quantizer's published gradients
   (`qtool.quantizers`), also towards a teacher's logits.
4. BatchNorm statistics are averaged anew at the final weights.

This is what a network reaches that is trained for just these bits: the "dedicated" row that
adaptive methods are compared with.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from qtool.core.cost import LayerCost
from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits, Selection, read_selection
from qtool.data.images import DataSet
from qtool.frontends.float_network import make_float
from qtool.networks import (
    bits_content,
    build_network,
    build_prepared,
    check_network,
    quant_spec,
)
from qtool.nn.control import bit_costs, quant_layers, select
from qtool.nn.prepare.prepare import prepare
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import Config
from qtool.settings.qat import QatConfig
from qtool.settings.registry import config_as
from qtool.training.frontend import Frontend
from qtool.training.ingredients import (
    check_training,
    fit_grids,
    make_batches,
    plain_phase,
    save_quantized,
    settings_of,
    with_teacher,
)
from qtool.training.phases import run_phase


def check(config: Config, data: DataSet) -> None:
    """Refuse, before anything is written, what `train` would refuse."""
    config = config_as(config, QatConfig, "qtool train")
    if config.activation_bits or config.weight_bits:
        raise UserError(
            "recipe settings activation_bits and weight_bits: frontend qat has one width a "
            "layer: --set bits=w4a4, or bits=FILE"
        )
    check_training(with_teacher(config, ""), data)
    check_network(config, data.shape, data.classes, config.weights)
    _costs(config, data)


def _costs(config: QatConfig, data: DataSet) -> list[LayerCost]:
    """Return every layer's MACs and the bits that the recipe asks for.

    Raises:
        UserError: no such file, bits that are not supported, other layers than the network's.
    """
    asked = read_selection(config.bits, "recipe setting bits:")
    # Without a default every layer is named; any bits that the quantizers have will do here.
    integer = (bits for bits in asked.layers.values() if not bits.is_float)
    uniform = asked.default or next(integer, LayerBits(8, 8))
    spec = replace(
        quant_spec(config),
        activation_bits=(uniform.activation,),
        weight_bits=uniform.weight,
    )
    model = prepare(build_network(config, data.shape, data.classes), spec, data.shape)
    named = asked.resolve(layer.name for layer in quant_layers(model)).layers
    costs = bit_costs(model, data.shape, Selection(default=asked.default))
    if asked.default is None:
        _require_every(config, [cost.name for cost in costs if cost.name not in named])
    # Whatever the recipe has for other layers: these were asked for by name.
    costs = [replace(cost, bits=named.get(cost.name, cost.bits)) for cost in costs]
    quant_spec(config, {cost.name: cost.bits for cost in costs}).check(c.name for c in costs)
    return costs


def _require_every(config: QatConfig, silent: Sequence[str]) -> None:
    """Refuse bits without a default that say nothing of the layers `silent`."""
    if silent:
        shown = ", ".join(silent[:3]) + (", ..." if len(silent) > 3 else "")
        raise UserError(
            f"recipe setting bits: {config.bits} does not name {len(silent)} layers ({shown}) "
            f"of model {config.model}: name them, or give a default such as w4a4"
        )


def train(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    """Train at the recipe's bits; leaves bits.json, float and model weights in `run`."""
    config = run.settings(QatConfig)
    if not (resume and run.load_bits()):
        run.save_bits(bits_content(_costs(config, data)))
    if not (resume and run.has_weights(Stage.FLOAT)):
        make_float(run, config, data, progress, resume)
    if not (resume and run.has_weights(Stage.MODEL)):
        _train_quantized(run, data, progress, resume)


def _train_quantized(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    """Train weights and steps; leaves ``model.safetensors``."""
    config = settings_of(run, QatConfig)
    batches, model = make_batches(config, data), build_prepared(run, float_weights=True)
    fit_grids(config, model, batches, config.calibration_images)
    select(model, Selection())
    phase = plain_phase("qat", config, model, config.epochs, config.lr)
    run_phase(phase, run, batches, progress, resume)
    save_quantized(run, "qat", model, batches, data, progress)
    run.drop_checkpoint()


def search_start(run: Run) -> NoReturn:
    """Refuse: no bits are searched here."""
    raise UserError(
        f"run {run.folder} was made by frontend qat, whose bits are fixed: train another one "
        "with --set bits=FILE, or search with frontend metamix"
    )


FRONTEND = Frontend(
    QatConfig, check, train, search_start, "qtool export {run} --target onnx -o model.onnx"
)
