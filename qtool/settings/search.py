"""Settings of a search: a recipe of any frontend that trains, as `qtool.search` reads it."""

import dataclasses
from dataclasses import dataclass

from qtool.settings.base import TrainConfig


@dataclass(frozen=True)
class SearchSettings(TrainConfig):
    """What a search and the fine-tuning after it take from a recipe, and what they add.

    A recipe with fields of these names (MetaMix's) says what they are; for the others these
    are the defaults, which ``qtool search --set`` overrides.

    Args:
        meta_epochs: of bit-meta before: dnas trains for as long as metamix, meta included.
        meta_lr: learning rate of the weights while bits are searched.
        search_epochs: of the search by gradients.
        search_lambda: of the budget's share in the loss, per GBOP.
        alpha_lr: learning rate of the architecture parameters.
        alpha_init: standard deviation of their start.
        fixed_meta_state: metamix: weights are not trained on the mixture of branches.
        finetune_epochs: at the chosen bits.
        finetune_lr: learning rate then.
    """

    meta_epochs: int = 1
    meta_lr: float = 0.02
    search_epochs: int = 1
    search_lambda: float = 1.0
    alpha_lr: float = 1e-4
    alpha_init: float = 1e-3
    fixed_meta_state: bool = True
    finetune_epochs: int = 5
    finetune_lr: float = 0.04


def search_settings(recipe: TrainConfig) -> SearchSettings:
    """Return `recipe` as a search reads it."""
    names = [field.name for field in dataclasses.fields(SearchSettings)]
    known = {name: getattr(recipe, name) for name in names if hasattr(recipe, name)}
    return SearchSettings(**known)


def missing_settings(recipe: TrainConfig) -> list[str]:
    """Return the settings of a search that `recipe` has no fields for."""
    names = [field.name for field in dataclasses.fields(SearchSettings)]
    return [name for name in names if not hasattr(recipe, name)]
