"""Methods of joint training, by name: each differs from the others in what defines it.

vanilla          all precisions share every parameter and BatchNorm, statistics too
switchable       a BatchNorm for each precision (Yu et al., arXiv 1812.08928, for widths)
adabits          AdaBits (arXiv 1912.09666): SAT's quantizers, BatchNorm and clipping value of
                 each precision
any_precision    Any-Precision (arXiv 1911.07346): its quantizers, BatchNorm of each precision,
                 which learns from the next higher one alone, no labels
double_rounding  Double Rounding (arXiv 2502.01199): its nesting codes, whose step's learning
                 rate is scaled by precision (ALRS), and the rest of each precision
coquant          CoQuant (arXiv 2103.01435): PACT and modified DoReFa, BatchNorm and clipping
                 value of each precision, the best higher precision as teacher, beside labels,
                 and blocks swapped in from it

``vanilla`` and ``switchable`` have CoQuant's quantizers. Without a teacher the loss of a
precision is the cross-entropy alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Which of the higher precisions teaches one: none, the next, or the best by Eq. 4 of CoQuant.
Teacher = Literal["none", "next", "best"]


@dataclass(frozen=True)
class JointMethod:
    """What a method of joint training is.

    Args:
        settings: its quantizers, and whether candidates share what these learn: settings that
            it has where nothing else is said.
        shared_norms: all precisions have one BatchNorm.
        teacher: of every precision but the highest.
        labels: a taught precision learns from labels too.
        swaps: blocks of the teacher stand in for a taught precision's own.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    shared_norms: bool = False
    teacher: Teacher = "none"
    labels: bool = True
    swaps: bool = False


def _grids(
    quantizer: str, weight: str = "", activation: str = "", shared: bool = False
) -> dict[str, Any]:
    return {
        "quantizer": quantizer, "weight_quantizer": weight,
        "activation_quantizer": activation, "shared_steps": shared,
    }  # fmt: skip


METHODS: dict[str, JointMethod] = {
    "vanilla": JointMethod(_grids("pact", "sat", shared=True), shared_norms=True),
    "switchable": JointMethod(_grids("pact", "sat", shared=True)),
    "adabits": JointMethod(_grids("sat")),
    "any_precision": JointMethod(_grids("any_precision"), teacher="next", labels=False),
    "double_rounding": JointMethod(_grids("double_rounding")),
    "coquant": JointMethod(_grids("pact", "sat"), teacher="best", swaps=True),
}
