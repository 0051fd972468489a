"""Blocks of a network: the layers that are swapped together.

1. The modules that the setting `blocks` names.
2. Else the network's repeated modules: those of a class, none of torch's own, that stands at
   least twice side by side in one container (ResNet's blocks, MobileNet's inverted residuals).
   One inside another belongs to it.
3. Without any: every quantized layer is a block.
The first and the last layer, and what reads the image, have bits of their own: they are in no
block. Layers outside all blocks are always the student's.
"""

from collections import Counter
from collections.abc import Sequence

from torch import nn

from qtool.core.errors import UserError, unknown_name
from qtool.nn.control import called_layers

# Names of the layers of each block, blocks in the order of their first layers' calls.
Blocks = list[tuple[str, ...]]


def find_blocks(network: nn.Module, model: nn.Module, names: Sequence[str] = ()) -> Blocks:
    """Return the blocks of a network (see the module).

    Args:
        network: the user's.
        model: `network`, prepared.
        names: of modules of `network`; empty: its repeated ones.

    Raises:
        UserError: a name of no module, one without layers whose bits differ, or one inside
            another.
    """
    layers = [layer.name for layer in called_layers(model) if not layer.is_end]
    if names:
        _require(network, layers, names)
    blocks: dict[str, list[str]] = {}
    modules = names or repeated(network)
    for layer in layers:
        owner = next((name for name in modules if _is_in(layer, name)), None)
        if owner is not None:
            blocks.setdefault(owner, []).append(layer)
    return [tuple(found) for found in blocks.values()] or [(layer,) for layer in layers]


def repeated(network: nn.Module) -> list[str]:
    """Return the names of the outermost modules that are repeated."""
    found: list[str] = []
    for name, module in network.named_modules():
        kinds = Counter(type(child) for child in module.children() if _is_made(child))
        several = {kind for kind, count in kinds.items() if count > 1}
        prefix = f"{name}." if name else ""
        for child, part in module.named_children():
            if type(part) in several and not any(_is_in(f"{prefix}{child}", o) for o in found):
                found.append(f"{prefix}{child}")
    return found


def _is_made(module: nn.Module) -> bool:
    """True for a module of several, of a class that is not torch's own."""
    return not type(module).__module__.startswith("torch.nn.") and any(module.children())


def _is_in(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _require(network: nn.Module, layers: Sequence[str], names: Sequence[str]) -> None:
    known = [name for name, _ in network.named_modules() if name]
    for name in names:
        if name not in known:
            raise unknown_name("recipe setting blocks: module", name, known)
        outer = next((o for o in names if o != name and _is_in(name, o)), None)
        if outer is not None or names.count(name) > 1:
            raise UserError(
                f"recipe setting blocks: {name} is in {outer or name} already: name it once"
            )
        if not any(_is_in(layer, name) for layer in layers):
            raise UserError(
                f"recipe setting blocks: {name} has no layer whose bits change (the first and "
                "the last layer keep theirs): leave it out"
            )
