"""What a search leaves behind: per budget a run with bits.json and weights, and the front."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from qtool.core.errors import UserError
from qtool.core.files import write_json
from qtool.core.progress import Progress
from qtool.data.images import DataSet
from qtool.networks import bits_content, build_prepared, load_state
from qtool.nn.control import bit_costs, initialise_weight_steps, select
from qtool.nn.norm_rows import settle
from qtool.runs.run import Run
from qtool.runs.stage import Stage
from qtool.search import PARETO_FORMAT
from qtool.search.limits import KINDS, Limit
from qtool.search.methods import Found, Task
from qtool.search.request import Budget, Request
from qtool.settings.base import TrainConfig
from qtool.settings.search import SearchSettings
from qtool.training.evaluation import recalibrate_norms
from qtool.training.ingredients import (
    make_batches,
    plain_phase,
    save_quantized,
    with_teacher,
)
from qtool.training.phases import run_phase


@dataclass(frozen=True)
class Result:
    """One budget, the run that its result is, and its bounds."""

    budget: Budget
    run: Run
    limits: tuple[Limit, ...]


def settings_for(run: Run, request: Request) -> SearchSettings:
    """Return what `request` reads of the result `run`; a teacher "float" is the run itself."""
    return with_teacher(request.search_settings(run.settings(TrainConfig)), run.folder)


def prepared(run: Run, config: TrainConfig) -> nn.Module:
    """Return the run's network, prepared for the candidates of `config`."""
    return build_prepared(Run(run.folder, config, run.input_shape, run.classes))


def answer(result: Result, request: Request) -> dict[str, Any] | None:
    """Return the bits.json that an interrupted search left, if it answers this one.

    Raises:
        UserError: it answers another.
    """
    content = result.run.load_bits() if request.resume else None
    if content is None:
        return None
    asked = {"method": request.method, **_bounds(result.budget)}
    known = {key: value for key, value in content.items() if key in _asked_keys()}
    if known != asked:
        raise UserError(
            f"{result.run.path('bits.json')} answers {_text(known)}, not {_text(asked)}: "
            "resume with that, or start anew with --force"
        )
    return content


def _asked_keys() -> set[str]:
    return {"method", *(f"budget_{kind}" for kind in KINDS)}


def _bounds(budget: Budget) -> dict[str, float]:
    return {f"budget_{kind}": bound for kind, bound in budget.bounds.items()}


def _text(content: dict[str, Any]) -> str:
    bounds = {kind: content.get(f"budget_{kind}") for kind in KINDS}
    shown = [KINDS[kind].text(bound) for kind, bound in bounds.items() if bound is not None]
    return f"{content.get('method')} at {' and '.join(shown)}"


def save_choice(task: Task, result: Result, method: str, found: Found) -> None:
    """Write bits.json, and the network that fine-tuning starts from."""
    model = prepared(task.run, task.config)
    model.load_state_dict(task.model.state_dict() if found.state is None else found.state)
    if not found.has_weight_steps:
        initialise_weight_steps(model)
    if not result.run.has_weights(Stage.META):
        result.run.link_weights(Stage.META, task.run)
    deploy(task, result, method, found, model)


def deploy(task: Task, result: Result, method: str, found: Found, model: nn.Module) -> None:
    """Save `model` at the bits that were found, with their statistics; bits.json comes last.

    Args:
        task: the search.
        result: gets both.
        method: who chose.
        found: what it chose.
        model: quantized; of norms with several rows, those of these bits stay.
    """
    run, chosen = result.run, task.space.selection(found.picks)
    content = {
        "method": method,
        **_bounds(result.budget),
        **{limit.kind: limit.used(found.picks) for limit in result.limits},
        **bits_content(bit_costs(model, run.input_shape, chosen)),
        "repaired": found.repaired,
        "finetuned": False,
    }
    select(model, chosen)
    settle(model)
    # Also what is deployed without fine-tuning: quantized weights, statistics at these bits.
    recalibrate_norms(model, make_batches(task.config, task.data), task.config.norm_batches)
    run.save_weights(Stage.SEARCHED, model.state_dict())
    run.save_weights(Stage.MODEL, model.state_dict())
    run.save_bits(content)
    task.progress.note(describe(content))


def describe(content: dict[str, Any]) -> str:
    """Return a line on what was chosen, and how far from the search's own favourite."""
    shown = [
        f"{KINDS[kind].text(content[kind])}, "
        f"{100 * content[kind] / content[f'budget_{kind}']:.1f} % of the budget"
        for kind in KINDS
        if f"budget_{kind}" in content
    ]
    moved = len(content["repaired"])
    layers = "1 layer" if moved == 1 else f"{moved} layers"
    repair = f" ({layers} moved from their argmax to meet it)" if moved else ""
    return f"bits chosen: {'; '.join(shown)}{repair}"


def finish(
    result: Result, data: DataSet, request: Request, progress: Progress
) -> dict[str, Any]:
    """Fine-tune at the chosen bits, unless that is done or not wanted; return bits.json."""
    run, content = result.run, result.run.load_bits() or {}
    if not request.finetune or content["finetuned"]:
        return content
    config = settings_for(run, request)
    batches, model = make_batches(config, data), build_prepared(run)
    load_state(model, run, Stage.SEARCHED)
    select(model, run.selection())
    phase = plain_phase(
        "fine-tune", config, model, config.finetune_epochs, config.finetune_lr, 0.0
    )
    run_phase(phase, run, batches, progress, request.resume)
    save_quantized(run, "fine-tune", model, batches, data, progress)
    content["finetuned"] = True
    run.save_bits(content)
    run.drop_checkpoint()
    return content


def save_front(
    base: Run, results: Sequence[Result], contents: Sequence[dict[str, Any]]
) -> None:
    """Write pareto.json: what every budget came to."""
    points = [
        {
            "run": result.run.folder.name,
            "method": content["method"],
            **{key: content[key] for key in content if key in KINDS or key in _asked_keys()},
            "accuracy": tested(result.run),
            "deployed": False,
        }
        for result, content in zip(results, contents, strict=True)
    ]
    write_json(base.path("pareto.json"), {"format": PARETO_FORMAT, "points": points})


def tested(run: Run) -> float | None:
    """Return the fake-quantized test accuracy in percent, None without fine-tuning."""
    lines = run.metrics("fine-tune")
    return next(
        (line["test_accuracy"] for line in lines[::-1] if "test_accuracy" in line), None
    )
