"""A recipe's optimizer and schedule, and recipes of earlier versions."""

import pytest
import torch
from torch import nn

from qtool.core.errors import UserError
from qtool.settings.base import TrainConfig
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.override import override
from qtool.settings.registry import from_json, to_json
from qtool.training.optimizers import groups_of, make_optimizer
from qtool.training.schedules import schedule_of


def recipe(*settings: str) -> MetaMixConfig:
    return override(MetaMixConfig("test", "resnet20", "none"), settings)


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.alpha = nn.Parameter(torch.ones(1))
        self.step, self.offset = (nn.Parameter(torch.ones(2, 1)) for _ in range(2))


def test_each_kind_of_parameter_has_its_group() -> None:
    config = recipe("weight_decay=3", "alpha_weight_decay=2", "step_lr_factor=0.5")
    groups = groups_of(config, Quantized(), lr=0.1)
    found = [(len(g["params"]), g["weight_decay"], g.get("lr", 0.1)) for g in groups]
    assert found == [(1, 3.0, 0.1), (3, 0.0, 0.1), (2, 0.0, 0.05), (1, 2.0, 0.05)]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_by_name(name: str) -> None:
    optimizer = make_optimizer(recipe(f"optimizer={name}"), nn.Linear(2, 1), 0.1)
    assert type(optimizer).__name__.lower() == name


def test_cosine_starts_after_the_warm_up() -> None:
    factor = schedule_of(recipe("warmup=0.2"))
    assert [factor(at) for at in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx(
        [0.05, 0.525, 1, 0.5, 0]
    )


def test_multistep_falls_at_its_milestones() -> None:
    factor = schedule_of(recipe("schedule=multistep", "milestones=0.3,0.9", "warmup=0"))
    assert [factor(at) for at in (0, 0.29, 0.3, 0.89, 0.9)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )


@pytest.mark.parametrize(("flip", "augment"), [(True, ("flip",)), (False, ())])
def test_a_recipe_from_before_augmentations_had_names(flip: bool, augment: tuple) -> None:
    value = to_json(recipe()) | {"flip": flip}
    del value["augment"]
    read = from_json(value, "here")
    assert isinstance(read, TrainConfig) and read.augment == augment


@pytest.mark.parametrize(
    "setting", ["schedule=step", "optimizer=lamb", "device=tpu", "accumulate=0", "ema=nan"]
)
def test_settings_out_of_range(setting: str) -> None:
    with pytest.raises(UserError, match=f"recipe setting {setting.partition('=')[0]}"):
        recipe(setting)
