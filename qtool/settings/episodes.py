"""Settings of training on episodes: MEBQAT-PN, MEBQAT-MAML and their baselines."""

from dataclasses import dataclass
from typing import ClassVar

from qtool.core.errors import UserError
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.pairs import (
    allowed_pairs,
    deployable,
    pair_name,
    parse_pairs,
    require_pairs,
)
from qtool.core.selection import LayerBits
from qtool.settings.base import ACTIVATIONS, WEIGHTS, TrainConfig
from qtool.settings.setting import differ, setting

# The candidates of MEBQAT's few-shot experiments (appendix, Table 6), integers first.
_WIDTHS = (8, 7, 6, 5, 4, 3, 2, *FLOAT_WIDTHS)
_LOOKS = "such as w8a3, fp"
INNER_LOOPS = ("bits", "joint", "none")


@dataclass(frozen=True)
class EpisodeConfig(TrainConfig):
    """What training on episodes has, whatever is learned from them."""

    dataset: str = "omniglot_fewshot"
    activation_bits: tuple[int, ...] = setting(
        _WIDTHS, "candidates of every inner layer's input; 16, 32: float",
        *ACTIVATIONS, also=FLOAT_WIDTHS, check=differ,
    )  # fmt: skip
    weight_bits: int | tuple[int, ...] = setting(
        _WIDTHS, "candidates of every inner layer's weights; 16, 32: float",
        *WEIGHTS, also=FLOAT_WIDTHS, check=differ,
    )  # fmt: skip
    bits: str = setting(
        "", "one pair to train at; empty: all pairs of the candidates", looks=_LOOKS
    )
    shared_steps: bool = True
    augment: tuple[str, ...] = setting((), "stays empty: episodes are not augmented")
    optimizer: str = "adam"
    weight_decay: float = 0.0
    step_lr_factor: float = 1.0
    norm_batches: int = setting(
        8, "training batches that BatchNorm's statistics at a pair are from", 1
    )
    ways: int = setting(20, "classes of a training episode", 2)
    shots: int = setting(5, "images a class to learn from, in training and in tests", 1)
    queries: int = setting(5, "images a class to ask about, in training", 1)
    tasks: int = setting(4, "pairs or episodes that a step is trained on", 1, 64)
    epochs: int = setting(200, "epochs of training", 0)
    episodes: int = setting(100, "steps of an epoch", 1)
    lr: float = setting(1e-3, "learning rate", 0)
    clamp: float = setting(
        10.0, "largest magnitude of a gradient's element, without bits; 0: any", 0
    )
    calibration_images: int = setting(
        512, "training images, the first ones, for first grids", 1
    )
    test_ways: int = setting(20, "classes of a test episode", 2)
    test_queries: int = setting(15, "images a class to ask about, in tests", 1)
    test_episodes: int = setting(600, "episodes that an accuracy is of", 2)
    transductive_episodes: int = setting(
        100, "episodes that the transductive accuracy is of; 0: it is not measured", 0
    )
    test_bits: tuple[str, ...] = setting(
        ("w8a3", "w4a4", "w2a2", "fp"), "pairs that are tested after training", looks=_LOOKS
    )

    ends_keep: ClassVar[bool] = True

    def pairs(self) -> list[LayerBits]:
        """Return the candidates' pairs that go together."""
        return allowed_pairs(self.weight_candidates, self.activation_bits)

    @property
    def pair(self) -> LayerBits | None:
        """The one pair that is trained; None: all of them."""
        return self._parsed("bits", self.bits)[0] if self.bits else None

    @property
    def example_bits(self) -> str:
        """See `Config`: the trained pair, or one that is tested, where they are integers."""
        first = [*([self.pair] if self.pair else []), *self.tested]
        return next(map(pair_name, filter(deployable, first)), super().example_bits)

    @property
    def passes(self) -> tuple[int, int]:
        """Back-propagations of a step over all pairs, and of one at a single pair."""
        return self.tasks, 1

    @property
    def tested(self) -> list[LayerBits]:
        """The pairs that are tested after training."""
        return self._parsed("test_bits", ",".join(self.test_bits)) if self.test_bits else []

    def _parsed(self, name: str, text: str) -> list[LayerBits]:
        return parse_pairs(text, self.pairs(), f"recipe setting {name}")

    def require_consistent(self) -> None:
        """Refuse settings that contradict each other."""
        super().require_consistent()
        require_pairs(self.weight_candidates, self.activation_bits)
        if self.bits and len(self._parsed("bits", self.bits)) > 1:
            raise UserError(f"recipe setting bits: got {self.bits}, expected one pair")
        if self.bits and self.shared_steps:
            raise UserError(
                f"recipe setting bits: {self.bits} is trained alone, so that steps which all "
                "bit-widths share would fit no other pair: add --set shared_steps=false"
            )
        _ = self.tested
        if self.augment or self.teacher:
            raise UserError(
                "recipe settings augment and teacher: episodes have neither, leave them out"
            )


@dataclass(frozen=True)
class PnConfig(EpisodeConfig):
    """MEBQAT-PN (arXiv 2207.10188): prototypical networks for every bit-width."""

    frontend: str = "mebqat_pn"
    model: str = "cnn4_omniglot"
    inner_loop: str = setting(
        "bits", "what a step's tasks differ in; joint, none: ablations (Table 7)",
        choices=INNER_LOOPS,
    )  # fmt: skip

    open_end: ClassVar[bool] = True
    classless: ClassVar[str] = "an embedding without prototypes"

    @property
    def passes(self) -> tuple[int, int]:
        """Back-propagations of a step over all pairs, and of one at a single pair."""
        return (1 if self.inner_loop == "none" else self.tasks), 1


@dataclass(frozen=True)
class MamlConfig(EpisodeConfig):
    """MEBQAT-MAML (arXiv 2207.10188): fine-tuned to new classes at any bit-width."""

    frontend: str = "mebqat_maml"
    model: str = "cnn5_omniglot"
    shots: int = setting(1, "images a class to learn from, in training and in tests", 1)
    queries: int = setting(15, "images a class to ask about, in training", 1)
    tasks: int = setting(16, "episodes of a step, each at a pair of its own", 1, 256)
    epochs: int = setting(75, "epochs of training", 0)
    episodes: int = setting(800, "steps of an epoch", 1)
    lr: float = setting(1e-4, "learning rate of the outer loop", 0)
    inner_steps: int = setting(5, "steps of the inner loop, and of qtool adapt", 0)
    inner_lr: float = setting(0.1, "learning rate of the inner loop, SGD", 0)

    classless: ClassVar[str] = "a network to be fine-tuned"

    @property
    def passes(self) -> tuple[int, int]:
        """Back-propagations of a step over all pairs, and of one at a single pair."""
        count = self.tasks * (self.inner_steps + 1)
        return count, count

    def outputs(self, classes: int) -> int:
        """Return the number of logits: those of an episode."""
        return self.ways

    def require_consistent(self) -> None:
        """Refuse settings that contradict each other."""
        super().require_consistent()
        if self.test_ways != self.ways:
            raise UserError(
                f"recipe settings ways and test_ways: got {self.ways} and {self.test_ways}; "
                "the network has a logit a class, expected the same"
            )
