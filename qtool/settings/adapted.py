"""Settings of a few-shot network that was given its classes."""

from dataclasses import dataclass

from qtool.settings.base import ACTIVATIONS, WEIGHTS, Config
from qtool.settings.setting import setting


@dataclass(frozen=True)
class AdaptedConfig(Config):
    """A few-shot network adapted to classes and a pair of bit-widths (qtool adapt)."""

    frontend: str = "adapted"
    activation_bits: tuple[int, ...] = setting(
        (), "stays empty: bits.json says it", *ACTIVATIONS
    )
    weight_bits: int | tuple[int, ...] = setting(
        (), "stays empty: bits.json says it", *WEIGHTS
    )
    source: str = setting("", "run that it was adapted from")
    prototypes: bool = setting(
        False, "a layer behind the network holds a prototype for every class"
    )
    embedding_classes: int = setting(
        0, "classes that a network with prototypes was trained on; 0: as it has now", 0
    )
