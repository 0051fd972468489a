"""Settings of MEBQAT: one model for every bit-width."""

from dataclasses import dataclass
from typing import ClassVar

from qtool.core.cost import FLOAT_BITS
from qtool.core.errors import UserError
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.pairs import allowed_pairs, require_pairs
from qtool.core.selection import LayerBits
from qtool.settings.base import ACTIVATIONS, WEIGHTS, TrainConfig
from qtool.settings.setting import differ, setting


@dataclass(frozen=True)
class MebqatConfig(TrainConfig):
    """MEBQAT (arXiv 2207.10188): bit-widths are the tasks of meta-learning."""

    frontend: str = "mebqat"
    activation_bits: tuple[int, ...] = setting(
        (8, 6, 5, 4, 3, 2, 32), "candidates of every inner layer's input; 16, 32: float",
        *ACTIVATIONS, also=FLOAT_WIDTHS, check=differ,
    )  # fmt: skip
    weight_bits: int | tuple[int, ...] = setting(
        (8, 6, 5, 4, 3, 2, 32), "candidates of every inner layer's weights; 16, 32: float",
        *WEIGHTS, also=FLOAT_WIDTHS, check=differ,
    )  # fmt: skip
    shared_steps: bool = True
    tasks: int = setting(
        4, "pairs of bits a batch: float, 1-bit ones where there are any, drawn ones", 2, 64
    )
    force_narrowest: bool = setting(
        False, "each batch has the pair of fewest bits too, as it has 1-bit ones"
    )
    self_distillation: float = setting(
        1.0, "weight of the cross-entropy towards what the float task predicts", 0
    )
    clamp: float = setting(10.0, "largest magnitude of a gradient's element; 0: any", 0)
    weights: str = setting("", "float weights to start from: FILE or RUN")
    float_epochs: int = setting(0, "epochs of float training before, without weights", 0)
    float_lr: float = setting(0.1, "learning rate of float training", 0)
    epochs: int = setting(10, "epochs of training on pairs of bits", 0)
    lr: float = setting(0.01, "learning rate of the weights in them", 0)
    calibration_images: int = setting(
        512, "training images, the first ones, for first grids", 1
    )
    norm_batches: int = setting(
        4, "training batches that BatchNorm's statistics at a pair are from", 1
    )

    ends_keep: ClassVar[bool] = True
    is_joint: ClassVar[bool] = True

    def pairs(self) -> list[LayerBits]:
        """Return the candidates' pairs that go together, and float: it is always trained."""
        pairs = allowed_pairs(self.weight_candidates, self.activation_bits)
        return list(dict.fromkeys([*pairs, FLOAT_BITS]))

    def require_consistent(self) -> None:
        """Refuse candidates without an integer, and a teacher: the float task is it."""
        super().require_consistent()
        require_pairs(self.weight_candidates, self.activation_bits)
        if self.teacher:
            raise UserError(
                "recipe setting teacher: frontend mebqat teaches itself, from its float task: "
                "see self_distillation"
            )
