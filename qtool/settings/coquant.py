"""Settings of joint training at several precisions: CoQuant and its baselines."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from qtool.core.choose import Serves
from qtool.core.errors import UserError
from qtool.core.selection import LayerBits
from qtool.settings.base import ACTIVATIONS, WEIGHTS, TrainConfig
from qtool.settings.joint_methods import METHODS
from qtool.settings.setting import differ, setting


@dataclass(frozen=True)
class CoquantConfig(TrainConfig):
    """CoQuant (arXiv 2103.01435) and its baselines: all precisions trained jointly."""

    frontend: str = "coquant"
    activation_bits: tuple[int, ...] = setting(
        (8, 6, 4, 2), "the precisions, highest first: bits of inputs and of weights",
        *ACTIVATIONS, check=differ,
    )  # fmt: skip
    weight_bits: int | tuple[int, ...] = setting(
        (8, 6, 4, 2), "follows activation_bits: a precision is as many bits of both", *WEIGHTS,
        check=differ,
    )  # fmt: skip
    quantizer: str = "pact"
    weight_quantizer: str = "sat"
    method: str = setting(
        "coquant", "sets the quantizers and shared_steps too, where not given", choices=METHODS
    )
    teacher_lambda: float = setting(
        0.001, "Eq. 4: nats that a teacher's distance costs, per bit", 0
    )
    kl_weight: float = setting(1.0, "weight of the divergence from a teacher's predictions", 0)
    swap_start: float = setting(
        0.5, "p_1: probability, at first, that the first block is the student's", 0, 1
    )
    blocks: tuple[str, ...] = setting(
        (), "modules that are swapped; empty: the network's repeated ones"
    )
    weights: str = setting("", "float weights to start from: FILE or RUN")
    float_epochs: int = setting(0, "epochs of float training before, without weights", 0)
    float_lr: float = setting(0.1, "learning rate of float training", 0)
    epochs: int = setting(10, "epochs of joint training", 0)
    lr: float = setting(0.01, "learning rate of the weights in them", 0)
    calibration_images: int = setting(
        512, "training images, the first ones, for first grids", 1
    )

    ends_keep: ClassVar[bool] = True
    is_joint: ClassVar[bool] = True

    @property
    def norms_serve(self) -> Serves:
        """Each layer at its own bits; where all precisions share one norm, that is any's."""
        return Serves.ANY if METHODS[self.method].shared_norms else Serves.OWN

    def pairs(self) -> list[LayerBits]:
        """Return the precisions, the highest first."""
        weights = self.weight_candidates
        return [LayerBits(b, b) for b in self.activation_bits if b in weights]

    def settled(self, before: Self, given: Collection[str]) -> Self:
        """Return the recipe with what a given method has, and weights of the given bits.

        What the recipe has otherwise than its method before, it keeps.
        """
        implied: dict[str, Any] = {}
        if "activation_bits" in given:
            implied["weight_bits"] = self.activation_bits
        if self.method in METHODS:  # which is checked only afterwards
            old, new = METHODS[before.method].settings, METHODS[self.method].settings
            implied |= {k: v for k, v in new.items() if getattr(before, k) == old[k]}
        return replace(self, **{k: v for k, v in implied.items() if k not in given})

    def require_consistent(self) -> None:
        """Refuse precisions from low to high, and a teacher: higher precisions are it."""
        super().require_consistent()
        falling = tuple(sorted(self.activation_bits, reverse=True))
        if self.activation_bits != falling:
            raise UserError(
                f"recipe setting activation_bits: got {_listed(self.activation_bits)}, "
                f"expected the highest precision first: {_listed(falling)}"
            )
        if self.teacher:
            raise UserError(
                "recipe setting teacher: frontend coquant teaches a precision by a higher "
                "one: see method and kl_weight"
            )

    def require_joint(self) -> None:
        """Refuse candidates that are not two precisions at least."""
        if len(self.activation_bits) < 2:
            got = _listed(self.activation_bits) or "none"
            raise UserError(
                f"recipe setting activation_bits: got {got}, expected two precisions at "
                "least, such as 8,4: one alone is trained by frontend qat"
            )
        if self.weight_candidates != self.activation_bits:
            raise UserError(
                "recipe settings weight_bits and activation_bits: a precision is as many bits "
                "of both: give activation_bits alone"
            )


def _listed(bits: Collection[int]) -> str:
    return ",".join(map(str, bits))
