"""Recipes are frozen dataclasses; ``--set key=value`` overrides a field, type-checked.

Every frontend has a class of its own, `CONFIGS` says which; what the run directory, the export
and the check read is in their common base. What a field means and may be stands beside it
(`qtool.settings.setting`).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Self, TypeVar

from qtool.core.choose import Serves
from qtool.core.errors import UserError
from qtool.core.grids import ACTIVATION_BITS, FLOAT_WIDTHS, WEIGHT_BITS
from qtool.core.pairs import deployable, pair_name
from qtool.core.selection import LayerBits
from qtool.data.augment import AUGMENTS, parse_augment
from qtool.quantizers import QUANTIZERS
from qtool.settings.setting import differ, setting, told

ACTIVATIONS = (ACTIVATION_BITS.start, ACTIVATION_BITS.stop - 1)
WEIGHTS = (WEIGHT_BITS.start, WEIGHT_BITS.stop - 1)
_OTHERS = ("", *QUANTIZERS)
_AUGMENTS = ", ".join(name + "N" * sized for name, (_, sized, _) in AUGMENTS.items())


@dataclass(frozen=True)
class Config:
    """What every frontend's settings have: the network, its images and its quantizers."""

    name: str = field(metadata=told("the recipe"))
    model: str = field(metadata=told("network: see qtool list models; or module:factory"))
    dataset: str = field(metadata=told("images: see qtool list datasets; or module:factory"))
    frontend: str = setting("", "makes the run: see qtool list frontends")
    activation_bits: tuple[int, ...] = setting(
        (8, 4, 3), "candidates of every inner layer's input", *ACTIVATIONS, check=differ
    )
    weight_bits: int | tuple[int, ...] = setting(
        4, "bits, or candidates, of every inner layer's weights", *WEIGHTS, check=differ
    )
    first_last_bits: int = setting(
        8, "weights and inputs of the first and the last layer; 16, 32: float",
        *WEIGHTS, also=FLOAT_WIDTHS,
    )  # fmt: skip
    glue_bits: int = setting(8, "bits of residual, pooling and output tensors", *ACTIVATIONS)
    mean: tuple[float, ...] = setting(
        (), "per channel: the network sees (pixel / 255 - mean) / std",
        -math.inf, math.inf,
    )  # fmt: skip
    std: tuple[float, ...] = setting(
        (), "per channel; both empty: it sees pixel / 255", 1e-6, 1e6
    )
    asymmetric: bool = setting(
        False, "signed activations have zero points that fit their range"
    )
    quantizer: str = setting(
        "lsq", "how weights and layer inputs become codes", choices=QUANTIZERS
    )
    weight_quantizer: str = setting(
        "", "of weights, if another; empty: quantizer", choices=_OTHERS, looks="as quantizer"
    )
    activation_quantizer: str = setting(
        "",
        "of layer inputs, if another; empty: quantizer",
        choices=_OTHERS,
        looks="as quantizer",
    )
    shared_steps: bool = setting(
        False, "a layer's candidates share a step, alpha or offset, or each has one"
    )
    allow_float: bool = setting(
        False, "train though operators have no integer form: export with --allow-float"
    )
    batch_size: int = setting(128, "images at a time", 1)
    train_images: int = setting(0, "training images used, the first ones; 0: all", 0)
    image_size: int = setting(0, "side of images in files, in pixels; 0: the usual", 0, 4096)
    frames: int = setting(0, "images a clip of video; 0: 8", 0, 256)
    # Up to here, what torch is seeded with (`qtool.training.loop`) stays below 2**63.
    seed: int = setting(0, "of everything that is drawn at random", 0, 10**10)

    @property
    def weight_candidates(self) -> tuple[int, ...]:
        """`weight_bits` as candidates."""
        bits = self.weight_bits
        return (bits,) if isinstance(bits, int) else bits

    # The first and the last layer keep their bits whatever a pair says of all layers.
    ends_keep: ClassVar[bool] = False
    # Weights are trained at all pairs; what a search makes of them is a run of its own, with
    # statistics of what was chosen alone.
    is_joint: ClassVar[bool] = False
    # The network is an embedding: a layer will follow, so that its last one is an inner one.
    open_end: ClassVar[bool] = False
    # What a run is that cannot be exported, as it has no classes yet; empty: it has.
    classless: ClassVar[str] = ""

    @property
    def norms_serve(self) -> Serves:
        """What norms that a run keeps for a pair of bits serve."""
        return Serves.WHOLE

    def outputs(self, classes: int) -> int:
        """Return the number of logits that a network has for data of so many `classes`."""
        return classes

    def pairs(self) -> list[LayerBits]:
        """Return every pair of the candidates, weights slowest; none where bits are fixed."""
        weights = self.weight_candidates
        return [LayerBits(w, a) for w in weights for a in self.activation_bits]

    @property
    def example_bits(self) -> str:
        """A pair of integers that the run has, for hints: ``w4a4``; empty: it has none."""
        return next(map(pair_name, filter(deployable, self.pairs())), "")

    def settled(self, before: Self, given: Collection[str]) -> Self:
        """Return the recipe with what settings that were just `given` imply for others.

        Args:
            before: as it was without them.
            given: their names.
        """
        return self

    def require_consistent(self) -> None:
        """Refuse settings that contradict each other."""
        if len(self.mean) != len(self.std):
            raise UserError(
                f"recipe settings mean and std: got {len(self.mean)} and {len(self.std)} "
                "values, expected one each per channel"
            )


def _augment(_name: str, value: tuple[str, ...]) -> None:
    parse_augment(value)


@dataclass(frozen=True)
class TrainConfig(Config):
    """What every frontend that trains has: data, loss, optimizer, schedule, machine."""

    augment: tuple[str, ...] = setting(
        ("flip",), "done to training images, in this order; N is in pixels",
        check=_augment, looks=_AUGMENTS,
    )  # fmt: skip
    workers: int = setting(0, "processes that decode images in files ahead", 0, 256)
    label_smoothing: float = setting(
        0.0, "of the cross-entropy: share that all classes get", 0, 1
    )
    optimizer: str = setting(
        "sgd",
        "of all that trains; sgd has Nesterov's momentum",
        choices=("sgd", "adam", "adamw"),
    )
    momentum: float = setting(0.9, "of optimizer sgd", 0, 1)
    weight_decay: float = setting(5e-4, "of weight tensors; BatchNorm and biases have none", 0)
    alpha_weight_decay: float = setting(5e-4, "of clipping levels (alpha, PACT)", 0)
    pact_init: float = setting(
        0.0, "clipping levels (alpha) at first; 0: of the least squared error", 0
    )
    pact_lr: float = setting(
        0.0, "learning rate of clipping levels (alpha); 0: as quantizers'", 0
    )
    step_lr_factor: float = setting(0.1, "learning rate of quantizers relative to weights", 0)
    clip_norm: float = setting(0.0, "largest norm of all gradients together; 0: any", 0)
    accumulate: int = setting(1, "parts that a batch is computed in, in turn", 1)
    ema: float = setting(0.0, "decay of the average of weights that is saved; 0: none", 0, 1)
    schedule: str = setting(
        "cosine", "how the learning rate falls in a phase", choices=("cosine", "multistep")
    )
    warmup: float = setting(0.0, "share of a phase in which the rate grows", 0, 1)
    milestones: tuple[float, ...] = setting(
        (0.5, 0.75), "multistep: shares of a phase where the rate falls", 0, 1
    )
    gamma: float = setting(0.1, "multistep: factor by which the rate falls", 0)
    norm_batches: int = setting(40, "batches that BatchNorm's final statistics are from", 1)
    teacher: str = setting(
        "", "to distil from: FILE, RUN, or float: the run's own float weights"
    )
    teacher_model: str = setting("", "network of a teacher's weights file; empty: as model")
    distill_weight: float = setting(
        0.5, "share of the loss that compares with the teacher", 0, 1
    )
    temperature: float = setting(4.0, "of the logits in that comparison", 1e-3)
    device: str = setting(
        "auto",
        "where training runs; auto: cuda if there is one",
        choices=("auto", "cpu", "cuda"),
    )
    autocast: bool = setting(False, "compute in bfloat16 what torch.autocast does")
    checkpoint_minutes: float = setting(
        10.0, "minutes between checkpoints in an epoch; 0: only at its end", 0
    )
    checkpoint_steps: int = setting(
        0, "batches between checkpoints in an epoch; 0: only at its end", 0
    )


ConfigT = TypeVar("ConfigT", bound=Config)
