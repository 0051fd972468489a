"""MetaMix (Kim et al., AAAI 2024, arXiv 2311.06798): bits searched on a fixed meta-state.

1. Bit-meta (Eq. 1): min over W of mean over b of L(W; every layer at b). Weights in floating
   point and shared, one activation step per bit-width ("branch").
2. Branch (Eq. 2): a_hat = sum_b softmax(alpha)_b Q_b(a).
3. Bit-search (Eq. 3-5): min over alpha of L_task + lambda |BOPs(hs(alpha)) - target|, weights
   and steps fixed; hs is the one-hot argmax forward and softmax backward; BOPs in units of
   1e9.
4. Phases (Table 1): bit-meta; then bit-meta and bit-search in turn on each batch; then weights
   (now quantized) and steps are fine-tuned at argmax alpha.

Ours beyond the paper: float pre-training is part of the recipe; residual, pooling and output
tensors carry learned 8-bit grids from bit-meta on, since the device has no floats; BatchNorm
uses running statistics in bit-search, so that the meta-state is fixed entirely; the argmax is
repaired when it misses the budget (`qtool.search.fit`). Bit-meta is
`qtool.frontends.metamix.bit_meta`, the search `qtool.search`.
"""

from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.core.selection import Selection
from qtool.data.batches import Batch
from qtool.data.images import DataSet
from qtool.frontends.float_network import make_float
from qtool.frontends.meta_state import search_start
from qtool.frontends.metamix.bit_meta import bit_meta, branches_of
from qtool.models import model_entry
from qtool.networks import build_prepared, check_network
from qtool.nn.control import initialise_weight_steps, select
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.settings.base import Config
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.registry import config_as
from qtool.training.averages import Averages
from qtool.training.evaluation import recalibrate_norms
from qtool.training.frontend import Frontend
from qtool.training.ingredients import (
    CALIBRATION_IMAGES,
    check_training,
    fit_grids,
    make_batches,
    make_objective,
    settings_of,
    with_teacher,
)
from qtool.training.phase import Phase
from qtool.training.phases import run_phase


def check(config: Config, data: DataSet) -> None:
    """Refuse, before anything is written, what `train` would refuse."""
    config = config_as(config, MetaMixConfig, "qtool train")
    for name in ("activation_bits", "weight_bits"):
        if getattr(config, name) == ():
            raise UserError(f"recipe setting {name}: no candidates; give some, such as 8,4,3")
    model_entry(config.model)
    check_training(with_teacher(config, ""), data)
    check_network(config, data.shape, data.classes, config.weights)


def train(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    """Float pre-training, then bit-meta: leaves float, meta and model weights in `run`."""
    if not (resume and run.has_weights(Stage.FLOAT)):
        make_float(run, run.settings(MetaMixConfig), data, progress, resume)
    if not (resume and run.has_weights(Stage.MODEL)):
        _train_meta(run, data, progress, resume)


def _train_meta(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    config = settings_of(run, MetaMixConfig)
    batches = make_batches(config, data)
    model = build_prepared(run, float_weights=True)
    fit_grids(config, model, batches, CALIBRATION_IMAGES)
    update, losses = bit_meta(config, config.meta_lr, model, make_objective(config))

    def step(batch: Batch, averages: Averages) -> str:
        update(losses, batch, averages)
        return ""

    phase = Phase(
        "bit-meta", config.meta_epochs, model, [update.optimizer], step, ema=update.ema
    )
    run_phase(phase, run, batches, progress, resume)
    has_weight_steps = not branches_of(config)[0].is_float
    if not has_weight_steps:
        initialise_weight_steps(model)
    select(model, Selection(), weights=has_weight_steps)
    recalibrate_norms(model, batches, config.norm_batches)
    run.save_weights(Stage.META, model.state_dict())
    run.save_weights(Stage.MODEL, model.state_dict())
    run.drop_checkpoint()


FRONTEND = Frontend(
    MetaMixConfig, check, train, search_start, "qtool search {run} --bops BUDGET{data}"
)
