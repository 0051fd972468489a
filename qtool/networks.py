"""From a run to its network: float, prepared for quantization, or as it is deployed."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qtool.core.cost import LayerCost, total_bops, total_macs
from qtool.core.errors import UserError
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.pairs import default_pair, pair_key
from qtool.core.selection import LayerBits, Selection, layers_to_json
from qtool.core.zero_shot import place_of
from qtool.models import model_factory
from qtool.models.normalised import Normalised, normalised
from qtool.models.prototyped import Prototyped
from qtool.models.weights import fit_state, load_weights
from qtool.nn.control import select
from qtool.nn.norm_rows import add_rows, settle
from qtool.nn.prepare.admit import admit
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.nn.seeded import seeded
from qtool.nn.widen import fill, with_widths
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.runs.zero_shot import zero_shot_pairs
from qtool.settings.adapted import AdaptedConfig
from qtool.settings.base import Config
from qtool.settings.ptq import PtqConfig


def build_float(run: Run) -> nn.Module:
    """Return the run's float network, initialised from its seed."""
    return build_network(run.config, run.input_shape, run.classes)


def build_network(config: Config, shape: Sequence[int], classes: int) -> nn.Module:
    """Return the recipe's float network for images `shape` (C, H, W), from its seed."""
    outputs, has_prototypes = classes, False
    if isinstance(config, AdaptedConfig) and config.prototypes:
        # Some embeddings have an output for each class that they were trained on.
        outputs, has_prototypes = config.embedding_classes or classes, True
    with seeded(config.seed):
        network = model_factory(config.model)(in_channels=shape[0], classes=outputs)
        if has_prototypes:
            network = Prototyped(network, shape, classes)
    model = normalised(network, config.mean, config.std, shape[0])
    if all(parameter.ndim != 5 for parameter in model.parameters()):  # torch refuses those
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def network_with(
    config: Config, weights: str, shape: Sequence[int], classes: int, what: str = "weights"
) -> nn.Module:
    """Return the recipe's float network with the weights in a file or a run directory.

    Args:
        config: the recipe.
        weights: path of the file or the directory.
        shape: (C, H, W) of an image.
        classes: number of logits.
        what: the setting, for the error.

    Raises:
        UserError: no such file or run, damaged, or of another network.
    """
    model, path = build_network(config, shape, classes), Path(weights)
    if path.is_dir():
        fit_state(model, Run.open(path).load_weights(Stage.FLOAT), f"run {path}")
    else:
        network = model.network if isinstance(model, Normalised) else model
        fit_state(network, load_weights(path), f"{what} {path}")
    return model


def check_network(config: Config, shape: Sequence[int], classes: int, weights: str) -> None:
    """Refuse, in seconds and with every reason, a network that cannot be quantized.

    Args:
        config: the recipe.
        shape: (C, H, W) of an image.
        classes: of the data set.
        weights: file or run directory; empty: as its seed initialises the network.

    Raises:
        UserError: one line (`qtool.nn.prepare.admit`).
    """
    if weights:
        model = network_with(config, weights, shape, classes)
    else:
        model = build_network(config, shape, classes)
    admit(model, QuantSpec(), shape, classes, config.model, config.allow_float)


def check_embedding(config: Config, shape: Sequence[int], classes: int) -> None:
    """Refuse, as `check_network` does, an embedding: it may have any number of outputs."""
    model = build_network(config, shape, classes)
    admit(model, QuantSpec(), shape, None, config.model, config.allow_float)


def load_float(run: Run) -> nn.Module:
    """Return the trained float network."""
    model = build_float(run)
    load_state(model, run, Stage.FLOAT)
    return model


def build_prepared(run: Run, float_weights: bool = False) -> nn.Module:
    """Return the run's network with quantizers, from its initial or trained float weights."""
    fixed = {} if run.config.activation_bits else run.selection().layers
    model = load_float(run) if float_weights else build_float(run)
    return prepare(model, quant_spec(run.config, fixed), run.input_shape)


def quant_spec(config: Config, layers: Mapping[str, LayerBits] | None = None) -> QuantSpec:
    """Return what `prepare` puts into the recipe's network.

    Args:
        config: the recipe.
        layers: bits of single layers, whatever the recipe says.
    """
    return QuantSpec(
        _grids(config.activation_bits), _grids(config.weight_candidates),
        config.first_last_bits, config.glue_bits,
        asymmetric=config.asymmetric, layers=layers or {}, quantizer=config.quantizer,
        weight_quantizer=config.weight_quantizer,
        activation_quantizer=config.activation_quantizer,
        shared=config.shared_steps, ends_keep=config.ends_keep, open_end=config.open_end,
    )  # fmt: skip


def _grids(candidates: tuple[int, ...]) -> tuple[int, ...]:
    """Return the candidates that have a grid; floating point needs none."""
    return tuple(bits for bits in candidates if bits not in FLOAT_WIDTHS)


def bits_content(costs: Sequence[LayerCost]) -> dict[str, Any]:
    """Return what every bits.json says of its layers."""
    return {
        "bops": total_bops(costs),
        "macs": total_macs(costs),
        "layers": layers_to_json((cost.name, cost.bits) for cost in costs),
        "layer_macs": {cost.name: cost.macs for cost in costs},
    }


def load_prepared(run: Run, pairs: Iterable[LayerBits] = ()) -> nn.Module:
    """Return the run's network with quantizers, and with the weights that it ends with.

    Args:
        run: trained.
        pairs: bits that it shall have beside its candidates (`qtool.core.zero_shot`).

    Raises:
        UserError: bits that are neither trained nor between two that are.
    """
    model = build_prepared(run)
    load_state(model, run, Stage.MODEL)
    config = run.config
    places = [place_of(config.weight_candidates, config.activation_bits, b) for b in pairs]
    weights = {at.weight.width: at.weight for at in places if not at.weight.is_trained}
    inputs = {
        at.activation.width: at.activation for at in places if not at.activation.is_trained
    }
    if not (weights or inputs):
        return model
    spec = with_widths(quant_spec(config), weights, inputs)
    wider = prepare(build_float(run), spec, run.input_shape)
    fill(wider, model, weights, inputs)
    return wider


def load_adaptive(run: Run, trained: bool = False) -> nn.Module:
    """Return the run's prepared network with everything that it has for any selection.

    Tensors of their own that the run holds for some bits (corrections, statistics) are rows of
    norms and biases; those of ``model.safetensors`` are the default ones.

    Args:
        run: with its weights.
        trained: without the pairs that it was never trained at.
    """
    model = load_prepared(run, () if trained else zero_shot_pairs(run))
    if run.has_weights(Stage.CORRECTIONS):
        rows = split_corrections(run.load_weights(Stage.CORRECTIONS))
        own = run.settings(PtqConfig).bits
        add_rows(model, own, rows, f"run {run.folder}: {Stage.CORRECTIONS.file}")
    kept = (Stage.NORMS,) if trained else (Stage.NORMS, Stage.ZERO_SHOT)
    norms = [stage for stage in kept if run.has_weights(stage)]
    if norms:
        rows = {}
        for stage in norms:
            rows |= split_corrections(run.load_weights(stage))
        own = pair_key(default_pair(run.config.weight_candidates, run.config.activation_bits))
        where = f"run {run.folder}: {' and '.join(stage.file for stage in norms)}"
        add_rows(model, own, rows, where, run.config.exact_norms)
    select(model, Selection())
    return model


def load_deployed(run: Run, selection: Selection) -> nn.Module:
    """Return the run's prepared network as it is deployed at the bits of `selection`.

    Of norms and biases with several rows, those of these bits are all that is left
    (`qtool.core.choose`).
    """
    model = load_adaptive(run)
    select(model, selection)
    settle(model)
    return model


def split_corrections(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group ``w4a4/name`` tensors by bits."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        bits, _, name = key.partition("/")
        groups.setdefault(bits, {})[name] = tensor
    return groups


def load_state(model: nn.Module, run: Run, stage: Stage) -> None:
    """Load the weights of `stage`, which must fit the recipe's model."""
    try:
        model.load_state_dict(run.load_weights(stage))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"run {run.folder}: {stage.file} does not fit model {run.config.model}: {reason}"
        ) from None
