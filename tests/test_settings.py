"""Settings say what they mean and what they may be; `qtool list settings` prints it."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import run_qtool

from qtool.core.errors import UserError
from qtool.recipes import GENERIC, RECIPES, load_recipe
from qtool.settings.base import Config
from qtool.settings.listing import Row, rows_of
from qtool.settings.mebqat import MebqatConfig
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.override import override
from qtool.settings.ptq import PtqConfig
from qtool.settings.qat import QatConfig
from qtool.settings.registry import CONFIGS
from qtool.settings.setting import MANY, Setting, setting, setting_of

ALL = {**GENERIC, **RECIPES}


def fields() -> Iterator[tuple[type[Config], str, Setting]]:
    for kind in CONFIGS.values():
        for field in dataclasses.fields(kind):
            yield kind, field.name, setting_of(kind, field.name)


def row(config: Config, name: str) -> Row:
    (found,) = (row for row in rows_of(config) if row.name == name)
    return found


# --- what fields say ---


@pytest.mark.parametrize("kind", CONFIGS.values())
def test_a_class_belongs_to_its_frontend_and_holds_its_own_defaults(kind: type) -> None:
    config = kind("recipe", "network", "images")
    assert CONFIGS[config.frontend] is kind
    assert override(config, []) == config


def test_every_field_says_in_one_line_what_it_means() -> None:
    for kind, name, says in fields():
        assert says.meaning and says.meaning == says.meaning.strip(" ."), (kind, name)
        assert "\n" not in says.meaning and len(says.meaning) <= 72, (kind, name)


def test_numbers_are_held_to_their_ranges() -> None:
    ranged = [
        (n, s) for _, n, s in fields() if s.lowest is not None and math.isfinite(s.lowest)
    ]
    assert len(ranged) > 60
    for name, says in ranged:
        assert says.lowest is not None
        highest = MANY if says.highest is None else says.highest
        for value in (says.lowest, highest, *says.also):
            says.require(name, value)
        says.require(name, (says.lowest, highest, *says.also))
        for value in (says.lowest - 1, highest + 1, math.nan):
            said = f"setting {name}: got {value}, expected {says.lowest:g} to {highest:g}"
            for given in (value, (highest, value)):
                with pytest.raises(UserError, match=re.escape(said)):
                    says.require(name, given)


@pytest.mark.parametrize(("kind", "given", "said"), [
    (QatConfig, "lr=-0.1", "recipe setting lr: got -0.1, expected 0 to 1e+09"),
    (QatConfig, "batch_size=0", "recipe setting batch_size: got 0, expected 1 to 1e+09"),
    (QatConfig, "label_smoothing=nan", "label_smoothing: got nan, expected 0 to 1"),
    (QatConfig, "first_last_bits=9", "first_last_bits: got 9, expected 1 to 8"),
    (MebqatConfig, "weight_bits=17,8", "weight_bits: got 17, expected 1 to 8, 16, 32"),
    (QatConfig, "seed=-1", "recipe setting seed: got -1, expected 0 to 1e+10"),
    (QatConfig, "milestones=0.5,2", "recipe setting milestones: got 2.0, expected 0 to 1"),
    (QatConfig, "weight_quantizer=lsc", "setting weight_quantizer 'lsc': did you mean lsq"),
    (QatConfig, "augment=flop", "unknown augmentation 'flop': did you mean flip"),
    (QatConfig, "augment=crop", "recipe setting augment: got 'crop', expected crop4, with a"),
    (QatConfig, "std=1", "settings mean and std: got 0 and 1 values, expected one each"),
    (QatConfig, "glue=mse", "unknown recipe setting 'glue': did you mean"),
    (QatConfig, "lr", "--set 'lr': expected key=value"),
    (QatConfig, "asymmetric=maybe", "--set asymmetric=maybe: expected bool"),
    (PtqConfig, "bits=8", "recipe setting bits: got '8', expected such as w4a8"),
    (PtqConfig, "presets=w8a8,x", "recipe setting presets: got 'x', expected such as w4a8"),
    (PtqConfig, "presets=w9a8", "w9a8: weight bits 9 not supported, expected 1 to 8, or 16"),
    (PtqConfig, "percentile=49", "recipe setting percentile: got 49.0, expected 50 to 100"),
    (PtqConfig, "correction=all", "setting correction 'all': known: affine, bias, none"),
    (MetaMixConfig, "search_lambda=-1", "search_lambda: got -1.0, expected 0 to 1e+09"),
])  # fmt: skip
def test_wrong_values_are_refused(kind: type, given: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        override(kind("recipe", "network", "images"), [given])
    assert said in str(refused.value)


def test_a_subclass_may_change_a_default_or_the_meaning() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(QatConfig):
        batch_size: int = 7
        lr: float = setting(0.5, "another one", 0, 1)

    mine = Mine("recipe", "network", "images")
    assert row(mine, "batch_size") == Row("batch_size", "7", ">= 1", "images at a time")
    assert row(mine, "lr") == Row("lr", "0.5", "0 to 1", "another one")
    assert row(QatConfig("r", "n", "i"), "lr").meaning != "another one"
    with pytest.raises(UserError, match="batch_size: got 0"):
        override(mine, ["batch_size=0"])
    with pytest.raises(UserError, match=r"lr: got 2\.0, expected 0 to 1"):
        override(mine, ["lr=2"])


def test_a_field_without_a_meaning_is_found() -> None:
    @dataclasses.dataclass(frozen=True)
    class Silent(Config):
        more: int = 1

    with pytest.raises(TypeError, match=r"Silent\.more does not say what it means"):
        override(Silent("recipe", "network", "images"), [])


# --- rows ---


def test_rows_have_values_as_set_takes_them() -> None:
    config = load_recipe("qat_resnet20_cifar")
    assert row(config, "augment").value == "crop4,flip"
    assert row(config, "asymmetric") == Row(
        "asymmetric", "true", "true, false",
        "signed activations have zero points that fit their range",
    )  # fmt: skip
    assert row(config, "first_last_bits").range == "1 to 8, 16, 32"
    assert row(config, "optimizer").range == "sgd, adam, adamw"
    assert row(config, "augment").range == "flip, cropN, resized_crop, cutoutN"
    assert (row(config, "mean").range, row(config, "model").range) == ("", "")


@pytest.mark.parametrize("name", ALL)
def test_rows_give_the_recipe_back(name: str) -> None:
    config = load_recipe(name)
    rows = rows_of(config)
    assert [row.name for row in rows] == [field.name for field in dataclasses.fields(config)]
    # A single width that may be a list comes back as a list of one.
    given = [f"{row.name}={row.value}" for row in rows if row.name != "weight_bits"]
    assert override(config, given) == config


# --- the command ---


def test_list_settings_fits_its_width() -> None:
    listed = run_qtool("list", "settings", "ptq_resnet20_cifar")
    assert listed.code == 0, listed.err
    lines = listed.out.splitlines()
    assert lines[0].split() == ["setting", "value", "range", "meaning"]
    assert max(map(len, lines)) <= 100
    (line,) = (line for line in lines if line.startswith("batch_size"))
    assert line.split(maxsplit=2) == ["batch_size", "128", line[line.index(">=") :]]
    assert ">= 1" in line and "images at a time" in line
    for row in rows_of(load_recipe("ptq_resnet20_cifar")):
        assert sum(line.split(" ")[0] == row.name for line in lines) == 1, row.name


def test_list_settings_as_json() -> None:
    listed = run_qtool("list", "settings", "metamix_fashion", "--json")
    rows = json.loads(listed.out)
    assert rows == [dataclasses.asdict(row) for row in rows_of(load_recipe("metamix_fashion"))]
    assert {"name": "lr", "value": "0.01"}.keys() <= rows[0].keys()


@pytest.mark.parametrize(("words", "said"), [
    (("settings",), "qtool list settings needs a recipe: qtool list settings RECIPE"),
    (("settings", "qat_fashoin"), "unknown recipe 'qat_fashoin': did you mean qat_fashion"),
    (("models", "resnet18"), "qtool list models takes no name, got 'resnet18'"),
])  # fmt: skip
def test_list_says_what_is_missing(words: tuple[str, ...], said: str) -> None:
    refused = run_qtool("list", *words)
    assert (refused.code, refused.err.count("\n"), refused.out) == (2, 1, "")
    assert said in refused.err


def test_other_lists() -> None:
    recipes = run_qtool("list", "recipes").out.splitlines()
    assert len(recipes) == len(ALL)
    assert {line.split()[0] for line in recipes} == set(ALL)
    frontends = run_qtool("list", "frontends").out
    assert all(name in frontends for name in CONFIGS)
    assert (
        "without training" in json.loads(run_qtool("list", "frontends", "--json").out)["ptq"]
    )


def test_listing_settings_does_not_need_torch() -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom qtool.cli.main import main\n"
        "sys.argv = ['qtool', 'list', 'settings', 'qat']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "learning rate" in done.stdout, done.stderr
