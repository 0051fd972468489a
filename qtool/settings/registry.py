"""Settings classes by frontend; recipes to JSON and back."""

import dataclasses
import json
from typing import Any

from qtool.core.errors import UserError
from qtool.settings.adapted import AdaptedConfig
from qtool.settings.base import Config, ConfigT
from qtool.settings.coquant import CoquantConfig
from qtool.settings.episodes import MamlConfig, PnConfig
from qtool.settings.mebqat import MebqatConfig
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.ptq import PtqConfig
from qtool.settings.qat import QatConfig

CONFIGS: dict[str, type[Config]] = {
    "adapted": AdaptedConfig,
    "coquant": CoquantConfig,
    "mebqat": MebqatConfig,
    "mebqat_maml": MamlConfig,
    "mebqat_pn": PnConfig,
    "metamix": MetaMixConfig,
    "ptq": PtqConfig,
    "qat": QatConfig,
}


def to_json(config: Config) -> dict[str, Any]:
    """Return the fields as a JSON object."""
    value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return value


def from_json(value: dict[str, Any], where: str) -> Config:
    """Return the config saved by `to_json`, as its frontend's class.

    Raises:
        UserError: unknown frontend, unknown or missing fields.
    """
    frontend = value.get("frontend", "metamix")
    if frontend not in CONFIGS:
        raise UserError(f"{where}: unknown frontend {frontend!r}: made by a newer qtool?")
    kind = CONFIGS[frontend]
    known = {f.name for f in dataclasses.fields(kind)}
    value = _renewed(value)
    if unknown := sorted(set(value) - known):
        raise UserError(
            f"{where}: unknown recipe settings {', '.join(unknown)}: made by a newer qtool?"
        )
    try:
        fixed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return kind(**fixed)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None


def _renewed(value: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of an earlier version in the settings of this one."""
    if "flip" not in value:
        return value
    augment = ["flip"] if value["flip"] else []
    return {key: v for key, v in value.items() if key != "flip"} | {"augment": augment}


def config_as(config: Config, kind: type[ConfigT], what: str) -> ConfigT:
    """Return `config` if it is a `kind`; `what` needs one."""
    if not isinstance(config, kind):
        raise UserError(
            f"{what}: recipe {config.name} belongs to frontend {config.frontend}, not to "
            f"{', '.join(name for name, known in CONFIGS.items() if issubclass(known, kind))}"
        )
    return config
