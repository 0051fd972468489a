"""What a search method works on, and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from torch import Tensor, nn

from qtool.core.errors import unknown_name
from qtool.core.progress import Progress
from qtool.data.images import DataSet
from qtool.runs.run import Run
from qtool.search import METHODS
from qtool.search.limits import Limit
from qtool.search.space import Space
from qtool.settings.search import SearchSettings

State = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """What a method works on.

    Args:
        run: where checkpoints and metrics go; holds the float network.
        config: candidates and settings; a teacher "float" is the run itself.
        data: training images.
        model: prepared network at the meta-state.
        space: its layers and candidates.
        budgets: name and bounds of each.
        progress: shown to the user.
        resume: continue from a checkpoint.
        is_joint: `model` is jointly trained: nothing of it is to be trained.
    """

    run: Run
    config: SearchSettings
    data: DataSet
    model: nn.Module
    space: Space
    budgets: Sequence[tuple[str, tuple[Limit, ...]]]
    progress: Progress
    resume: bool
    is_joint: bool = False


@dataclass(frozen=True)
class Found:
    """What a method chose for one budget.

    Args:
        picks: index of the choice of every open layer.
        state: prepared network that fine-tuning starts from; None: the task's as it is.
        repaired: layers whose choice is not the method's favourite, to meet the budget.
        has_weight_steps: `state` has weights that were trained quantized.
    """

    picks: list[int]
    state: State | None = None
    repaired: list[str] = field(default_factory=list)
    has_weight_steps: bool = False


def load_method(name: str) -> Callable[[Task], list[Found]]:
    """Return the function of search method `name`."""
    if name not in METHODS:
        raise unknown_name("search method", name, METHODS)
    module, _, function = METHODS[name].place.partition(":")
    found: Callable[[Task], list[Found]] = getattr(import_module(module), function)
    return found
