"""Searches by a metric of every layer: Hessian traces (HAWQ-V2), or measured loss.

No architecture parameters: one penalty a choice, from `METRIC_IMAGES` training images, and the
selection of least penalty within the budget. All budgets come from the same penalties.
"""

from qtool.data.batches import Batch, to_batch
from qtool.networks import load_float
from qtool.search.curvature import layer_traces
from qtool.search.fit import is_fitting, least
from qtool.search.greedy import greedy_choices, loss_increases
from qtool.search.hessian import hessian_penalties
from qtool.search.methods import Found, Task
from qtool.training.ingredients import make_batches

METRIC_IMAGES = 1024
_BATCH = 64
_PROBES = 2


def hessian(task: Task) -> list[Found]:
    """Minimise HAWQ-V2's sum of mean curvature times squared error, by integer programming."""
    batches = _batches(task)
    layers = [layer.name for layer in task.space.open]
    traces = layer_traces(load_float(task.run), layers, batches, _PROBES, task.config.seed)
    penalties = hessian_penalties(task.model, task.space, traces, batches)
    return [_found(task, least(penalties, limits)) for _, limits in task.budgets]


def greedy(task: Task) -> list[Found]:
    """Take the widest candidates, then one step down at a time where the loss rises least."""
    penalties = loss_increases(task.model, task.space, _batches(task))
    found = []
    for _, limits in task.budgets:
        picks = greedy_choices(penalties, limits[0].costs, limits[0].bound - limits[0].fixed)
        # Steps may be coarse, and other bounds are not greedy's business.
        fitting = is_fitting(picks, limits)
        found.append(_found(task, picks if fitting else least(penalties, limits)))
    return found


def _found(task: Task, picks: list[int]) -> Found:
    has_steps = any(len({c.weight for c in layer.choices}) > 1 for layer in task.space.open)
    return Found(picks, task.model.state_dict(), has_weight_steps=has_steps)


def _batches(task: Task) -> list[Batch]:
    """Return the first training images, as they are."""
    source = make_batches(task.config, task.data).source
    count = min(METRIC_IMAGES, len(source))
    return [
        to_batch(source, slice(i, min(i + _BATCH, count))) for i in range(0, count, _BATCH)
    ]
