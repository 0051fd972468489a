"""Rows of norms and biases in a prepared network: to give it some, pick one, settle on one.

The modules are `qtool.nn.modules.switch_norm`'s; which row a layer takes is the rule of
`qtool.core.choose`.
"""

import copy
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qtool.core.choose import Candidates, Serves, choose_rows, given_bits
from qtool.core.errors import UserError
from qtool.core.selection import Selection
from qtool.models.normalised import ConstantNorm
from qtool.nn.modules.affine import QuantAffine
from qtool.nn.modules.quant_layer import QuantLayer
from qtool.nn.modules.switch_norm import BatchNorm, Switch, SwitchBias, SwitchNorm

Tensors = Mapping[str, Tensor]


def switches(model: nn.Module) -> list[Switch]:
    """Return what has rows, in module order."""
    return [module for module in model.modules() if isinstance(module, Switch)]


def give_rows(
    model: nn.Module,
    keys: tuple[str, ...],
    serves: Serves = Serves.ANY,
    without: Collection[nn.Module] = (),
) -> None:
    """Give every BatchNorm of a prepared `model` a row for each key, all as it is now.

    Args:
        model: prepared; a constant norm, of the image, stays as it is.
        keys: the default one first (`qtool.core.choose.parse_key`); of a single one nothing
            comes.
        serves: what the rows do.
        without: norms that stay as they are.
    """
    if len(keys) < 2:
        return
    for _, owner in _owners(model):
        norm = owner.norm
        is_fixed = isinstance(norm, ConstantNorm) or norm in without
        if isinstance(norm, _BatchNorm) and not is_fixed:
            _switch(owner, {key: {} for key in keys}, serves)


def add_rows(
    model: nn.Module,
    default: str,
    rows: Mapping[str, Tensors],
    where: str,
    serves: Serves = Serves.ANY,
) -> None:
    """Give norms and biases of a prepared `model` further rows.

    Args:
        model: prepared; what it holds is the row `default`.
        default: key of that row.
        rows: by key what differs there, tensors named as in the model's state: a BatchNorm's
            own (``conv1.norm.weight``), or the bias of a layer without one
            (``fc.layer.bias``).
        where: the tensors are from, for the error.
        serves: what the rows do.

    Raises:
        UserError: a tensor of another name or shape, or a key of another form.
    """
    choose_rows((default, *rows), {}, {})  # refuses the key of no row
    known = model.state_dict()
    left = dict.fromkeys(name for tensors in rows.values() for name in tensors)
    for path, owner in _owners(model):
        prefix = f"{path}.layer.bias" if owner.norm is None else f"{path}.norm."
        mine = [name for name in left if name.startswith(prefix) and name in known]
        for name in mine:
            del left[name]
            if any(t[name].shape != known[name].shape for t in rows.values() if name in t):
                raise UserError(f"{where}: {name} has another shape than the model's")
        if mine:
            own: dict[str, Tensors] = {default: {}} | {
                key: {n.removeprefix(prefix): t for n, t in tensors.items() if n in mine}
                for key, tensors in rows.items()
            }
            _switch(owner, own, serves)
    _require_none(left, where)


def _require_none(left: Collection[str], where: str) -> None:
    for name in left:
        raise UserError(
            f"{where}: {name} is neither of a BatchNorm nor the bias of a layer without one, "
            "so that it cannot have rows"
        )


def _owners(model: nn.Module) -> Iterator[tuple[str, QuantLayer | QuantAffine]]:
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantLayer | QuantAffine):
            yield path, module


def _switch(
    owner: QuantLayer | QuantAffine, rows: Mapping[str, Tensors], serves: Serves
) -> None:
    """Give `owner`'s norm, or else its bias, `rows`: what differs, by key; "" is the bias."""
    norm = owner.norm
    if isinstance(norm, SwitchNorm):
        raise ValueError(f"norm {owner.name} has rows already")
    if norm is not None:
        layer = owner.name if isinstance(owner, QuantLayer) else owner.layer
        owner.norm = SwitchNorm(owner.name, layer, _norms(norm, rows), serves)
    elif isinstance(owner, QuantLayer):
        _switch_bias(owner, rows)


def _norms(norm: BatchNorm, rows: Mapping[str, Tensors]) -> dict[str, BatchNorm]:
    norms: dict[str, BatchNorm] = {}
    for key, tensors in rows.items():
        # The default row is the norm itself.
        norms[key] = copy.deepcopy(norm) if norms else norm
        norms[key].load_state_dict({**norm.state_dict(), **tensors})
    return norms


def _switch_bias(owner: QuantLayer, rows: Mapping[str, Tensors]) -> None:
    bias = owner.layer.bias
    if bias is None:
        raise ValueError(f"layer {owner.name} has no bias")
    owner.biases = SwitchBias(
        owner.name, {key: tensors.get("", bias) for key, tensors in rows.items()}
    )
    owner.layer.bias = None


def layer_candidates(model: nn.Module) -> dict[str, Candidates]:
    """Return what every layer's weight and input may get, by layer."""
    return {
        layer.name: Candidates(
            layer.weight_quant.bits, layer.input_quant.bits, layer.weight_quant.keeps_bits
        )
        for layer in model.modules()
        if isinstance(layer, QuantLayer)
    }


def pick_rows(model: nn.Module, selection: Selection) -> None:
    """Pick the row of every norm and bias that has several, at the bits of `selection`.

    Args:
        model: prepared.
        selection: of names and a default, no patterns.
    """
    found = switches(model)
    if not found:
        return
    candidates = layer_candidates(model)
    given = given_bits(candidates, selection)
    serves = {switch.bank.keys: switch.serves for switch in found}
    by_keys = {keys: choose_rows(keys, candidates, given, serves[keys]) for keys in serves}
    for switch in found:
        rows = by_keys[switch.bank.keys]
        switch.pick(rows[switch.layer])


def settle(model: nn.Module) -> None:
    """Leave only the picked rows: every norm and bias is a plain one again."""
    for _, owner in _owners(model):
        if isinstance(owner.norm, SwitchNorm):
            owner.norm = owner.norm.picked
        if isinstance(owner, QuantLayer) and owner.biases is not None:
            owner.layer.bias, owner.biases = owner.biases.picked, None


def active_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorms that see batches: no constants, of several rows the picked one."""
    idle = {
        norm for switch in switches(model) if isinstance(switch, SwitchNorm)
        for norm in switch.norms if norm is not switch.picked
    }  # fmt: skip
    return [
        module for module in model.modules()
        if isinstance(module, _BatchNorm) and module not in idle
        and not isinstance(module, ConstantNorm)
    ]  # fmt: skip
