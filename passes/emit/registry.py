"""The targets by name, the only place that lists them; `passes.emit.base` says what one is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from passes.emit.base import Target, options_of
from passes.emit.onnx.target import OnnxTarget
from passes.emit.relay.target import RelayTarget
from passes.emit.tvm.target import TvmTarget
from qtool.core.errors import UserError

# The first is the one for files that no suffix tells; of two with one suffix the first has it.
TARGETS: dict[str, type[Target]] = {
    "onnx": OnnxTarget,
    "tvm": TvmTarget,
    "relay": RelayTarget,
}


def make_target(name: str, given: Mapping[str, Any]) -> Target:
    """Return target `name` with its options.

    Args:
        name: a key of `TARGETS`.
        given: options of any target by name; None where the command line has none.

    Raises:
        UserError: an option of other targets is given.
    """
    kind = TARGETS[name]
    chosen, own = _given(given), options_of(kind)
    for option in chosen:
        if option not in own:
            owners = [other for other in TARGETS if option in options_of(TARGETS[other])]
            raise UserError(
                f"--{option.replace('_', '-')} needs --target {' or '.join(owners)}, got "
                f"--target {name}"
            )
    maker: Callable[..., Target] = kind
    return maker(**chosen)


def target_of(path: Path) -> type[Target] | None:
    """Return the target whose files end as `path`, None where there is none."""
    kinds = TARGETS.values()
    return next((kind for kind in kinds if path.name.endswith(kind.suffixes)), None)


def target_for(output: Path | None, given: Mapping[str, Any]) -> str:
    """Return the name of the target that is meant where ``--target`` is not given.

    1. as the output ends
    2. without an output (an option names a file): the target that has every given option
    3. else the first
    """
    first = next(iter(TARGETS))
    if output is not None:
        kind = target_of(output)
        return first if kind is None else kind.name
    wanted = set(_given(given))
    return next((name for name in TARGETS if wanted <= set(options_of(TARGETS[name]))), first)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
