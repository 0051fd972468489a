"""Settings of MetaMix."""

from dataclasses import dataclass

from qtool.settings.search import SearchSettings
from qtool.settings.setting import setting


@dataclass(frozen=True)
class MetaMixConfig(SearchSettings):
    """MetaMix (arXiv 2311.06798): bits per layer, searched on one state for all bits."""

    frontend: str = "metamix"
    weight_bits: int | tuple[int, ...] = 4
    label_smoothing: float = 0.1
    warmup: float = setting(0.2, "share of float pre-training in which the rate grows", 0, 1)
    weights: str = setting("", "float weights to start from: FILE or RUN")
    float_epochs: int = setting(8, "epochs of float pre-training, without weights", 0)
    float_lr: float = setting(0.1, "learning rate of float pre-training", 0)
