"""Learning-rate schedules: factors at a share of a phase, in [0, 1).

warm-up      0.05 to 1 in a straight line, up to share `warmup`
cosine       (1 + cos(pi * share of the rest)) / 2  (Loshchilov & Hutter, arXiv 1608.03983)
multistep    gamma ** (number of milestones reached)
"""

import math
from collections.abc import Callable, Sequence

from qtool.settings.base import TrainConfig

Schedule = Callable[[float], float]
_START = 0.05


def constant(_progress: float) -> float:
    """Return 1."""
    return 1.0


def warm_up(progress: float, warmup: float) -> float:
    """Return the factor while the rate still grows; 1 after that."""
    return _START + (1 - _START) * progress / warmup if progress < warmup else 1.0


def cosine(progress: float, warmup: float = 0.0) -> float:
    """Return half a cosine behind the warm-up."""
    if progress < warmup:
        return warm_up(progress, warmup)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def multistep(
    progress: float, milestones: Sequence[float], gamma: float, warmup: float = 0.0
) -> float:
    """Return a power of `gamma` that grows at each of `milestones`, behind the warm-up."""
    reached = sum(progress >= milestone for milestone in milestones)
    return warm_up(progress, warmup) * gamma**reached


def schedule_of(config: TrainConfig, warmup: float | None = None) -> Schedule:
    """Return the recipe's schedule, with another `warmup` than the recipe's if given."""
    share = config.warmup if warmup is None else warmup
    if config.schedule == "multistep":
        return lambda done: multistep(done, config.milestones, config.gamma, share)
    return lambda done: cosine(done, share)
