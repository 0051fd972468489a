"""A network whose weights are computed or shared -> the same with plain tensors of its own.

1. Computed weights: ``torch.nn.utils`` weight_norm, spectral_norm and prune (hooks), and every
   ``parametrize`` (its weight_norm, spectral_norm, orthogonal, ...): the value that evaluation
   uses becomes an ordinary parameter, and the hook or parametrization is gone.
2. A parameter that several layers have: each gets its own, of the same value. On the device it
   is in each layer's units anyway, and what is corrected or trained for one layer's grid must
   not change another's.
3. Running statistics that several BatchNorms have: likewise, since each folds into its layer.
4. A BatchNorm with a weight and no bias: gets a bias of 0 that is not trained.

The user's module stays as it is: the result is a copy of its structure that shares all other
parameters and buffers. A network that needs none of this is returned itself.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_OWN_DICTS = (
    "_parameters", "_buffers", "_modules", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_load_state_dict_pre_hooks",
)  # fmt: skip


def owned(model: nn.Module) -> nn.Module:
    """Return `model` with stored weights, none of them shared between layers."""
    computes = any(_is_computed(m) or _lacks_bias(m) for m in model.modules())
    if not computes and not shared_parameters(model) and not _share_statistics(model):
        return model
    return _Copier().copy(model)


def shared_parameters(model: nn.Module) -> list[tuple[str, str]]:
    """Return (first name, other name) of every parameter that several modules have."""
    first: dict[int, str] = {}
    pairs = []
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(path, recurse=False):
            known = first.setdefault(id(parameter), key)
            if known != key:
                pairs.append((known, key))
    return pairs


def _share_statistics(model: nn.Module) -> bool:
    """True where a buffer is that of two BatchNorms of `model`."""
    norms = [module for module in model.modules() if _is_norm(module)]
    buffers = [id(b) for norm in norms for b in norm.buffers(recurse=False)]
    return len(buffers) > len({*buffers})


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _is_computed(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or any(_hooks(module))


def _hooks(module: nn.Module) -> Iterator[tuple[int, Any]]:
    """Yield (key, hook) of the hooks that compute a tensor of `module` before each call."""
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod):
            yield key, hook


def _lacks_bias(module: nn.Module) -> bool:
    return _is_norm(module) and module.weight is not None and module.bias is None


def without_children(module: nn.Module) -> nn.Module:
    """Return a copy of `module` that shares its tensors and has no modules inside."""
    new = _shallow(module)
    new._modules.clear()
    return new


def _shallow(module: nn.Module) -> nn.Module:
    new: nn.Module = object.__new__(type(module))
    new.__dict__ = dict(module.__dict__)
    for name in _OWN_DICTS:
        new.__dict__[name] = module.__dict__[name].copy()
    return new


class _Copier:
    """Copies a tree of modules; a module that is in it twice becomes one module again."""

    def __init__(self) -> None:
        self.copies: dict[int, nn.Module] = {}
        self.taken: set[int] = set()

    def copy(self, module: nn.Module) -> nn.Module:
        if id(module) in self.copies:
            return self.copies[id(module)]
        self.copies[id(module)] = new = _shallow(module)
        with torch.no_grad():
            _store_hooked(module, new)
            if parametrize.is_parametrized(module):
                _store_parametrized(module, new)
        if _lacks_bias(module):
            zeros = torch.zeros_like(module.get_parameter("weight"))
            new._parameters["bias"] = nn.Parameter(zeros, requires_grad=False)
        for name, parameter in new._parameters.items():
            new._parameters[name] = self._own(parameter)
        if _is_norm(new):
            for name, buffer in new._buffers.items():
                new._buffers[name] = self._own_buffer(buffer)
        for name, child in new._modules.items():
            new._modules[name] = None if child is None else self.copy(child)
        return new

    def _own(self, parameter: nn.Parameter | None) -> nn.Parameter | None:
        """Return `parameter`, or one of the same value where a module has it already."""
        if parameter is None or id(parameter) not in self.taken:
            self.taken.add(id(parameter))
            return parameter
        return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)

    def _own_buffer(self, buffer: Tensor | None) -> Tensor | None:
        """Return `buffer`, or a copy where another norm has it already."""
        if buffer is None or id(buffer) not in self.taken:
            self.taken.add(id(buffer))
            return buffer
        return buffer.detach().clone()


def _store_hooked(module: nn.Module, new: nn.Module) -> None:
    for key, hook in _hooks(module):
        if isinstance(hook, WeightNorm):
            name, value = hook.name, hook.compute_weight(module)
            parts: tuple[str, ...] = ("_g", "_v")
        elif isinstance(hook, SpectralNorm):
            name, parts = hook.name, ("_orig", "_u", "_v")
            value = hook.compute_weight(module, do_power_iteration=False)
        else:
            name, parts = hook._tensor_name, ("_orig", "_mask")
            value = hook.apply_mask(module)
        trained = getattr(module, name + parts[0]).requires_grad
        del new._forward_pre_hooks[key]
        for part in parts:
            new._parameters.pop(name + part, None)
            new._buffers.pop(name + part, None)
        new.__dict__.pop(name, None)
        new._parameters[name] = _stored(value, trained)
    # Spectral norm's hooks around state dicts know names that are gone.
    for hooks in (new._state_dict_hooks, new._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            kind = type(getattr(hook, "hook", hook))
            if kind.__module__ == SpectralNorm.__module__:
                del hooks[key]


def _store_parametrized(module: nn.Module, new: nn.Module) -> None:
    chains: Any = module.parametrizations
    modes = {part: part.training for part in chains.modules()}
    chains.eval()  # spectral norm iterates in training
    try:
        values = {name: getattr(module, name) for name in chains}
    finally:
        for part, training in modes.items():
            part.training = training
    del new._modules["parametrizations"]
    new.__class__ = type(module).__bases__[0]  # as torch's remove_parametrizations
    for name, value in values.items():
        parameters = [p.requires_grad for p in chains[name].parameters()]
        if parameters:
            new._parameters[name] = _stored(value, any(parameters))
        else:
            new._buffers[name] = value.detach().clone()


def _stored(value: Tensor, trained: bool) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), trained)
