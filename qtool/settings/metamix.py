"""Settings of MetaMix."""

from dataclasses import dataclass

from qtool.settings.base import TrainConfig
from qtool.settings.setting import setting


@dataclass(frozen=True)
class MetaMixConfig(TrainConfig):
    """MetaMix (arXiv 2311.06798): bits per layer, searched on one state for all bits."""

    frontend: str = "metamix"
    weight_bits: int | tuple[int, ...] = 4
    label_smoothing: float = 0.1
    warmup: float = setting(0.2, "share of float pre-training in which the rate grows", 0, 1)
    weights: str = setting("", "float weights to start from: FILE or RUN")
    float_epochs: int = setting(8, "epochs of float pre-training, without weights", 0)
    float_lr: float = setting(0.1, "learning rate of float pre-training", 0)
    meta_epochs: int = setting(1, "epochs of bit-meta (paper, Table 1)", 0)
    meta_lr: float = setting(0.02, "learning rate of bit-meta, also beside bit-search", 0)
    search_epochs: int = setting(
        1, "epochs of bit-meta and bit-search in turn on each batch", 0
    )
    # The paper's 1 belongs to 5.3 GBOPs.
    search_lambda: float = setting(
        1.0, "weight of the budget (Eq. 3), per GBOP: small networks need more", 0
    )
    alpha_lr: float = setting(1e-4, "learning rate of the architecture parameters", 0)
    alpha_init: float = setting(
        1e-3, "standard deviation of the architecture parameters at first", 0
    )
    fixed_meta_state: bool = setting(
        True, "weights and steps stay in bit-search; false: they train too (ablation)"
    )
    finetune_epochs: int = setting(5, "epochs at the chosen bits", 0)
    finetune_lr: float = setting(0.04, "learning rate at the chosen bits", 0)
