"""Settings of a search: a recipe of any frontend that trains, as `qtool.search` reads it."""

import dataclasses
from dataclasses import dataclass

from qtool.core.grids import FLOAT_WIDTHS
from qtool.settings.base import TrainConfig
from qtool.settings.setting import setting


@dataclass(frozen=True)
class SearchSettings(TrainConfig):
    """What a search and the fine-tuning after it take from a recipe, and what they add.

    A recipe with fields of these names (MetaMix's) says what they are; for the others these
    are the defaults, which ``qtool search --set`` overrides.
    """

    # Also of dnas: it trains for as long as metamix, meta included.
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


def search_settings(recipe: TrainConfig) -> SearchSettings:
    """Return `recipe` as a search reads it: candidates that are floats are none of its."""
    names = [field.name for field in dataclasses.fields(SearchSettings)]
    known = {name: getattr(recipe, name) for name in names if hasattr(recipe, name)}
    for name in ("activation_bits", "weight_bits"):
        if not isinstance(known[name], int):
            known[name] = tuple(bits for bits in known[name] if bits not in FLOAT_WIDTHS)
    return SearchSettings(**known)


def missing_settings(recipe: TrainConfig) -> list[str]:
    """Return the settings of a search that `recipe` has no fields for."""
    names = [field.name for field in dataclasses.fields(SearchSettings)]
    return [name for name in names if not hasattr(recipe, name)]
