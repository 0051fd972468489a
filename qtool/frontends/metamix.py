"""MetaMix (Kim et al., AAAI 2024, arXiv 2311.06798): bits searched on a fixed meta-state.

1. Bit-meta (Eq. 1): min over W of mean over b of L(W; every layer at b). Weights in floating
   point and shared, one activation step per bit-width ("branch").
2. Branch (Eq. 2): a_hat = sum_b hs(alpha)_b Q_b(a).
3. Bit-search (Eq. 3-5): min over alpha of L_task + lambda |BOPs(alpha) - target|, weights
   and steps fixed; hs is the one-hot argmax forward and softmax backward; BOPs in units of
   1e9.
4. Phases (Table 1): bit-meta; then bit-meta and bit-search in turn on each batch; then weights
   (now quantized) and steps are fine-tuned at argmax alpha.

Ours beyond the paper: float pre-training is part of the recipe; residual, pooling and output
tensors carry learned 8-bit grids from bit-meta on, since the device has no floats; BatchNorm
uses running statistics in bit-search, so that the meta-state is fixed entirely; the argmax is
repaired when it misses the budget (`qtool.budget`). The released code backpropagates only the
last branch's loss in bit-meta; this follows the paper's mean.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qtool.config import Config, MetaMixConfig, config_as
from qtool.cost import format_count
from qtool.data.batches import to_batch
from qtool.data.clips import clip_logits
from qtool.data.images import DataSet
from qtool.errors import UserError
from qtool.frontends.bit_search import BitSearch
from qtool.frontends.pretrain import (
    bits_content,
    build_prepared,
    check_training,
    load_state,
    make_batches,
    make_float,
    make_objective,
    network_with,
    plain_phase,
    save_quantized,
    with_teacher,
)
from qtool.models import model_entry
from qtool.nn.control import bit_costs, calibrate, initialise_weight_steps, select
from qtool.nn.shared_prefix import SharedPrefix
from qtool.progress import Progress
from qtool.qspec import LayerBits, Selection
from qtool.run import Run
from qtool.training.averages import Averages
from qtool.training.distributed import average_gradients
from qtool.training.evaluation import recalibrate_norms
from qtool.training.phases import Phase, run_phase
from qtool.training.schedules import cosine
from qtool.training.update import Losses, Pass, Update

NEXT = "qtool search {run} --bops BUDGET"
CALIBRATION_IMAGES = 512


def check(config: Config, data: DataSet) -> None:
    """Refuse, before anything is written, what `train` would refuse."""
    config = config_as(config, MetaMixConfig, "qtool train")
    model_entry(config.model)
    check_training(with_teacher(config, ""), data)
    if config.weights:
        network_with(config, config.weights, data.shape, data.classes)


def train(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    """Float pre-training, then bit-meta: leaves float, meta and model weights in `run`."""
    if not (resume and run.has_weights("float")):
        make_float(run, settings_of(run), data, progress, resume)
    if not (resume and run.has_weights("model")):
        _train_meta(run, data, progress, resume)


def settings_of(run: Run) -> MetaMixConfig:
    """Return the run's recipe; a teacher "float" is the run itself."""
    config = config_as(run.config, MetaMixConfig, f"run {run.folder}")
    return with_teacher(config, run.folder)


def _train_meta(run: Run, data: DataSet, progress: Progress, resume: bool) -> None:
    config = settings_of(run)
    batches = make_batches(config, data)
    model = build_prepared(run, float_weights=True)
    calibrate(model, to_batch(batches.source, slice(0, CALIBRATION_IMAGES))[0])
    update, losses = bit_meta(config, model)

    def step(x: Tensor, labels: Tensor, averages: Averages) -> str:
        update(losses, x, labels, averages)
        return ""

    phase = Phase(
        "bit-meta", config.meta_epochs, model, [update.optimizer], step, ema=update.ema
    )
    run_phase(phase, run, batches, progress, resume)
    initialise_weight_steps(model)
    select(model, Selection(), weights=False)
    recalibrate_norms(model, batches, config.norm_batches)
    run.save_weights("meta", model.state_dict())
    run.save_weights("model", model.state_dict())
    run.drop_checkpoint()


def bit_meta(config: MetaMixConfig, model: nn.Module) -> tuple[Update, Losses]:
    """Return the step on the mean loss over the candidate bits (Eq. 1), and these losses."""
    objective, shared = make_objective(config), SharedPrefix(model)

    def losses(x: Tensor, labels: Tensor) -> Iterator[Pass]:
        model.train()
        loss = objective.on(x, labels)
        with shared.passes(x) as run:
            for bits in config.activation_bits:
                select(model, Selection(default=LayerBits(32, bits)), weights=False)
                logits = clip_logits(run(), len(labels))
                yield loss(logits), logits

    return Update(config, model, config.meta_lr, len(config.activation_bits)), losses


def search(
    run: Run, data: DataSet, budget: float, finetune: bool, progress: Progress, resume: bool
) -> dict[str, Any]:
    """Choose bits under `budget` BOPs, fine-tune at them; return bits.json's content.

    Raises:
        UserError: the budget is outside what the candidates reach.
    """
    run.require_shape(data)
    model = build_prepared(run)
    load_state(model, run, "meta")
    bit_search = BitSearch(settings_of(run), model, data.shape, budget)
    content = _resumed_bits(run, budget) if resume else None
    if content is None:
        content = _search_bits(run, bit_search, data, progress, resume)
    if finetune and not content["finetuned"]:
        _finetune(run, model, data, progress, resume)
        content["finetuned"] = True
        run.save_bits(content)
        run.drop_checkpoint()
    return content


def _resumed_bits(run: Run, budget: float) -> dict[str, Any] | None:
    """Return bits.json if it answers this search."""
    content = run.load_bits()
    if content is not None and content.get("budget_bops") != budget:
        raise UserError(
            f"{run.path('bits.json')} answers budget {content.get('budget_bops')}, not "
            f"{budget:.0f}: resume with that one, or start anew with --force"
        )
    return content


def _search_bits(
    run: Run, bit_search: BitSearch, data: DataSet, progress: Progress, resume: bool
) -> dict[str, Any]:
    """Alternate bit-meta and bit-search steps on each batch; write bits.json."""
    config, model = settings_of(run), bit_search.model
    update, losses = bit_meta(config, model)
    alphas = torch.optim.Adam(
        [bit_search.alpha], lr=config.alpha_lr, betas=(0.5, 0.999), weight_decay=1e-3
    )

    def step(x: Tensor, labels: Tensor, averages: Averages) -> str:
        update(losses, x, labels, Averages())
        model.eval()
        loss, logits, bops = bit_search.loss(x, labels)
        (bit_search.alpha.grad,) = torch.autograd.grad(loss, [bit_search.alpha])
        average_gradients([bit_search.alpha])
        alphas.step()
        averages.add(loss.detach(), logits, labels)
        return f"{format_count(bops)}BOPs of {format_count(bit_search.budget)}"

    phase = Phase(
        "bit-search", config.search_epochs, model, [update.optimizer, alphas], step, cosine,
        extra={"alpha": bit_search.alpha}, tag=f"{bit_search.budget:.0f}", ema=update.ema,
    )  # fmt: skip
    batches = make_batches(config, data)
    run_phase(phase, run, batches, progress, resume)
    chosen, repaired = bit_search.result()
    content = _bits_content(bit_search, data, chosen, repaired)
    # Also what is deployed without fine-tuning: quantized weights, statistics at these bits.
    initialise_weight_steps(model)
    select(model, Selection(chosen))
    recalibrate_norms(model, batches, config.norm_batches)
    run.save_weights("searched", model.state_dict())
    run.save_weights("model", model.state_dict())
    run.save_bits(content)
    run.drop_checkpoint()
    progress.note(_describe(content))
    return content


def _bits_content(
    bit_search: BitSearch, data: DataSet, chosen: dict[str, LayerBits], repaired: list[str]
) -> dict[str, Any]:
    costs = bit_costs(bit_search.model, data.shape, Selection(chosen))
    return {
        "budget_bops": bit_search.budget,
        **bits_content(costs),
        "repaired": repaired,
        "finetuned": False,
    }


def _describe(content: dict[str, Any]) -> str:
    share = 100 * content["bops"] / content["budget_bops"]
    repaired = len(content["repaired"])
    return f"bits chosen: {format_count(content['bops'])}BOPs, {share:.1f} % of the budget" + (
        f" ({repaired} layers moved from their argmax to meet it)" if repaired else ""
    )


def _finetune(
    run: Run, model: nn.Module, data: DataSet, progress: Progress, resume: bool
) -> None:
    """Train weights (quantized) and steps at the chosen bits; leaves ``model.safetensors``."""
    config = settings_of(run)
    batches = make_batches(config, data)
    load_state(model, run, "searched")
    select(model, run.selection())
    phase = plain_phase(
        "fine-tune", config, model, config.finetune_epochs, config.finetune_lr, 0.0
    )
    run_phase(phase, run, batches, progress, resume)
    save_quantized(run, "fine-tune", model, batches, data, progress)
