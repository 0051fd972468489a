"""Settings of MetaMix."""

from dataclasses import dataclass

from qtool.settings.base import TrainConfig


@dataclass(frozen=True)
class MetaMixConfig(TrainConfig):
    """MetaMix (arXiv 2311.06798): what its phases do, in order.

    Args:
        weights: float weights to start from, a file or a run directory; empty for none.
        float_epochs: of float pre-training, where there are no `weights`.
        float_lr: learning rate then.
        meta_epochs: of bit-meta (paper, Table 1).
        meta_lr: learning rate then, and of bit-meta beside bit-search.
        search_epochs: of bit-meta and bit-search in turn on each batch.
        search_lambda: lambda of Eq. 3, per GBOP: the paper's 1 belongs to 5.3 GBOPs, so small
            networks need more.
        alpha_lr: learning rate of the architecture parameters.
        alpha_init: standard deviation of their start.
        fixed_meta_state: weights and steps stay as they are in bit-search; false: they are
            trained along (the paper's ablation).
        finetune_epochs: at the chosen bits.
        finetune_lr: learning rate then.
        teacher: also "float": the float network that training starts from.
    """

    frontend: str = "metamix"
    weight_bits: int | tuple[int, ...] = 4
    label_smoothing: float = 0.1
    # Of float pre-training; the other phases start from trained weights.
    warmup: float = 0.2
    weights: str = ""
    float_epochs: int = 8
    float_lr: float = 0.1
    meta_epochs: int = 1
    meta_lr: float = 0.02
    search_epochs: int = 1
    search_lambda: float = 1.0
    alpha_lr: float = 1e-4
    alpha_init: float = 1e-3
    fixed_meta_state: bool = True
    finetune_epochs: int = 5
    finetune_lr: float = 0.04
