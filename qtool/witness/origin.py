"""What an origin and an artifact answer to the same images."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from passes.twins import Key
from runtimes.base import Codes, Floats


@dataclass(frozen=True)
class Known:
    """Real values that an origin computes, by the keys of `passes.twins`.

    Args:
        floats: what it computes without rounding, or with its own.
        exact: what it computes on the artifact's grids: the artifact must have these integers.
        output: (N, ...) without rounding, or with its own; None: it has no such weights.
        exact_output: (N, ...) on the artifact's grids; None: it does not compute there.
    """

    floats: Mapping[Key, Floats] = field(default_factory=dict)
    exact: Mapping[Key, Floats] = field(default_factory=dict)
    output: Floats | None = None
    exact_output: Floats | None = None


@dataclass(frozen=True)
class Answers:
    """What an artifact computes: integer tensors by name, and the float output (N, ...)."""

    tensors: Mapping[str, Codes]
    output: Floats
