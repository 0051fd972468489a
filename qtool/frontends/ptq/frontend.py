"""Post-training quantization: float weights -> a run, in about a minute and without training.

1. Float weights from elsewhere are fitted to the recipe's network (`qtool.models.weights`).
2. Grids of least squared error for weights (per channel) and layer inputs (with zero points
   where they are signed), at every candidate bit-width; glue grids by the recipe's choice
   (`qtool.frontends.ptq.calibration`).
3. Layer outputs are corrected channel by channel (`qtool.frontends.ptq.correction`).

Grids exist for every bit-width, so the run exports at any candidates. A correction belongs to
uniform bits: ``model.safetensors`` holds the one for the recipe's `bits`,
``corrections.safetensors`` those for its `presets`. They are rows of norms and biases: layers
of a mixed selection take the row of their own bits, or else that of `bits`
(`qtool.core.choose`).

Images of the training set do all of this; the test set only measures. The run is an ordinary
one: quantization-aware training can start from it.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

from rich.table import Table
from torch import Tensor, nn

from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.core.selection import Selection, parse_uniform
from qtool.data.batches import first_images
from qtool.data.images import DataSet
from qtool.frontends.float_network import save_float
from qtool.frontends.ptq.calibration import (
    GLUE_ROLES,
    Observed,
    fit_glue,
    fit_layers,
    observe,
)
from qtool.frontends.ptq.correction import correct, float_outputs
from qtool.frontends.ptq.glue_table import glue_table
from qtool.networks import bits_content, build_prepared, check_network, network_with
from qtool.nn.control import bit_costs, select
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.quantizers import weight_quantizer
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import Config
from qtool.settings.ptq import GLUE_CHOICES, PtqConfig
from qtool.settings.registry import config_as
from qtool.training.evaluation import accuracy
from qtool.training.frontend import Frontend

State = dict[str, Tensor]


def check(config: Config, data: DataSet) -> None:
    """Refuse, before anything is written, what `train` would refuse."""
    config = config_as(config, PtqConfig, "qtool train")
    weights = config.weight_quantizer or config.quantizer
    if not weight_quantizer(weights).learned:
        raise UserError(
            f"recipe {config.name}: {weights} weights have another size than the float "
            "network's, which only training makes up for; use --set weight_quantizer=lsq"
        )
    for bits in (config.bits, *config.presets):
        wanted = parse_uniform(bits)
        known = wanted is not None and wanted.weight in config.weight_bits
        if wanted is None or not known or wanted.activation not in config.activation_bits:
            raise UserError(
                f"recipe settings bits and presets: {bits} is not among the candidates, "
                f"weights {config.weight_bits} and activations {config.activation_bits}"
            )
    _require_weights(config)
    data.require_seen()
    check_network(config, data.shape, data.classes, config.weights)


def _require_weights(config: PtqConfig) -> None:
    if not config.weights:
        raise UserError(
            f"recipe {config.name} needs float weights: --set weights=FILE (.safetensors, "
            ".pt, .pth, .th) or the directory of a trained run"
        )


def _load_float(config: PtqConfig, data: DataSet) -> nn.Module:
    """Return the float network with the weights that the recipe names."""
    return network_with(config, config.weights, data.shape, data.classes)


def train(run: Run, data: DataSet, progress: Progress, resume: bool) -> Table | None:
    """Quantize; leaves float, model and corrections weights and bits.json in `run`.

    Returns:
        The accuracy that each choice of glue grids keeps, to print; None if all was done.
    """
    if resume and run.has_weights(Stage.MODEL):
        return None
    config = run.settings(PtqConfig)
    save_float(run, _load_float(config, data), data, progress)
    progress.note("calibrating")
    start = _Calibrated.of(run, config, data)
    rows = _compare_glue(start, data, progress)
    run.add_metrics(phase="glue", bits=config.bits, chosen=config.glue, choices=rows)
    _save_presets(run, start, progress)
    start.correct(config.bits)
    _finish(run, config, start.model, data, progress)
    return glue_table(config.bits, rows)


def search_start(run: Run) -> NoReturn:
    """Refuse: no bits are searched here."""
    raise UserError(
        f"run {run.folder} was made by frontend ptq, which searches no bits: choose them with "
        "qtool export --bits w4a4, or --bits FILE"
    )


@dataclass
class _Calibrated:
    """A prepared network with its grids, and what corrections at any bits start from."""

    config: PtqConfig
    model: nn.Module
    seen: dict[FakeQuantizer, Observed]
    images: Tensor
    outputs: dict[nn.Module, Tensor]
    state: State

    @classmethod
    def of(cls, run: Run, config: PtqConfig, data: DataSet) -> "_Calibrated":
        """Calibrate the run's float network."""
        train = data.train.head(config.train_images or None)
        model = build_prepared(run, float_weights=True)
        images = first_images(train, config.calibration_images)
        seen = observe(model, images, config.batch_size)
        fit_layers(model, seen)
        fit_glue(seen, config.glue, config.percentile)
        images = images[: config.correction_images]
        return cls(config, model, seen, images, float_outputs(model, images), _copy(model))

    def correct(self, bits: str, glue: str = "") -> None:
        """Make the model what is deployed at `bits`, with other glue grids if `glue` says so.

        Args:
            bits: such as w4a4.
            glue: one of `GLUE_CHOICES`, or "float" for none.
        """
        self.model.load_state_dict(self.state)
        select(self.model, Selection(default=parse_uniform(bits)))
        if glue in GLUE_CHOICES:
            fit_glue(self.seen, glue, self.config.percentile)
        elif glue:
            for quantizer in self.seen:
                quantizer.selected = (
                    None if quantizer.role in GLUE_ROLES else quantizer.selected
                )
        correct(self.model, self.images, self.outputs, self.config.correction)


def _copy(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _compare_glue(
    start: _Calibrated, data: DataSet, progress: Progress
) -> list[dict[str, Any]]:
    """Return the accuracy with each choice of glue grids, each corrected for itself."""
    images = data.test.head(start.config.compare_images or None)
    choices = ("float", *GLUE_CHOICES)
    progress.start("glue grids", len(choices))
    rows = []
    for choice in choices:
        start.correct(start.config.bits, choice)
        rows.append(
            {
                "glue": choice,
                "accuracy": accuracy(start.model, images),
                "images": len(images),
            }
        )
        progress.step(f"{choice} {rows[-1]['accuracy']:.2f} %")
    return rows


def _save_presets(run: Run, start: _Calibrated, progress: Progress) -> None:
    """Save what the correction at each preset changes, as ``w4a4/NAME``."""
    config, changed = start.config, {}
    presets = [bits for bits in config.presets if bits != config.bits]
    progress.start("corrections", len(presets))
    for bits in presets:
        start.correct(bits)
        for name, tensor in start.model.state_dict().items():
            if not tensor.equal(start.state[name]):
                changed[f"{bits}/{name}"] = tensor.clone()
        progress.step(bits)
    run.save_weights(Stage.CORRECTIONS, changed)


def _finish(
    run: Run, config: PtqConfig, model: nn.Module, data: DataSet, progress: Progress
) -> None:
    """Save the model as it is, with its bits and its accuracy."""
    costs = bit_costs(model, data.shape, Selection(default=parse_uniform(config.bits)))
    run.save_bits(bits_content(costs))
    result = accuracy(model, data.test)
    run.add_metrics(phase="ptq", bits=config.bits, test_accuracy=result)
    run.save_weights(Stage.MODEL, model.state_dict())
    progress.note(f"fake-quantized, {config.bits}: test accuracy {result:.2f} %")


FRONTEND = Frontend(
    PtqConfig, check, train, search_start, "qtool export {run} --target onnx -o model.onnx"
)
