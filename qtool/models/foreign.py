"""Networks from elsewhere: ``package.module:factory``, ``timm:NAME``, ``torchvision:NAME``.

A factory is any callable that returns an ``nn.Module``; the class itself will do. Its network
needs no qtool type. It is called with ``in_channels`` and ``classes`` (or ``in_chans`` and
``num_classes``, as elsewhere) only where its signature names them, and may have an attribute
``input_shape = (C, H, W)``. The current directory is importable, as it is for ``python -m``.

timm's and torchvision's networks come without pre-trained weights: nothing is downloaded.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from qtool.core.errors import UserError
from qtool.core.importing import current_folder, import_callable, import_named, no_such, reason
from qtool.models.state import without_size

# Of torch, around networks: what is inside can be traced, and has the names of its weights.
_WRAPPERS = (
    "DataParallel", "DistributedDataParallel", "OptimizedModule", "RecursiveScriptModule",
)  # fmt: skip
Factory = Callable[..., Any]
_ALIASES = {
    "in_channels": ("in_channels", "in_chans"),
    "classes": ("classes", "num_classes"),
}


@dataclass(frozen=True)
class Foreign:
    """A factory, and the (C, H, W) its network expects; empty where nobody said."""

    factory: Factory
    input_shape: tuple[int, ...] = ()


def find(name: str) -> Foreign:
    """Return the factory that `name` stands for.

    Raises:
        UserError: no such module or factory, the module fails, `input_shape` is none.
    """
    module, _, attribute = name.partition(":")
    if not attribute or not all(part.isidentifier() for part in module.split(".")):
        raise UserError(
            f"model {name!r}: expected package.module:factory, timm:NAME or torchvision:NAME"
        )
    library = _LIBRARIES.get(module)
    with current_folder():
        return _user_factory(name) if library is None else library(name, attribute)


def builder(name: str, factory: Factory) -> Callable[..., nn.Module]:
    """Return `factory` with two optional keywords, ``in_channels`` and ``classes``."""

    def build(in_channels: int | None = None, classes: int | None = None) -> nn.Module:
        values = _accepted(factory, {"in_channels": in_channels, "classes": classes})
        try:
            with current_folder():
                model = factory(**values)
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise UserError(f"model {name}: the factory failed: {reason(error)}") from error
        if not isinstance(model, nn.Module):
            raise UserError(
                f"model {name}: the factory returned {type(model).__name__}, expected an "
                "nn.Module"
            )
        if type(model).__name__ in _WRAPPERS:
            raise UserError(
                f"model {name}: the factory returned a {type(model).__name__}, a wrapper of a "
                "network; return the network itself"
            )
        if lazy := without_size(model):
            raise UserError(
                f"model {name}: {', '.join(lazy)}: no size yet; lazy modules must see a batch "
                "in the factory"
            )
        return model

    return build


def _accepted(factory: Factory, values: dict[str, int | None]) -> dict[str, int]:
    """Keep the values that are given and that the signature names; ``**kwargs`` names none."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # builtins have no signature
        return {}
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {n for n, parameter in parameters.items() if parameter.kind in keywords}
    accepted = {}
    for key, value in values.items():
        names = [alias for alias in _ALIASES[key] if alias in named]
        if value is not None and names:
            accepted[names[0]] = value
    return accepted


def _user_factory(name: str) -> Foreign:
    attribute, factory = name.partition(":")[2], import_callable(f"model {name}", name)
    if isinstance(factory, nn.Module) or not callable(factory):
        kind = type(factory).__name__
        raise UserError(
            f"model {name}: {attribute} is a {kind}, expected a function or class that makes "
            "an nn.Module"
        )
    return Foreign(factory, _shape(name, getattr(factory, "input_shape", ())))


def _shape(name: str, value: Any) -> tuple[int, ...]:
    """Check an `input_shape` attribute; a property of a class is none."""
    if isinstance(value, property):
        return ()
    shape = tuple(value) if isinstance(value, tuple | list) else (value,)
    if shape and not (len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)):
        raise UserError(
            f"model {name}: input_shape is {value!r}, expected (channels, height, width)"
        )
    return shape


def _timm(name: str, model: str) -> Foreign:
    timm = import_named(f"model {name}", "timm")
    if not timm.is_model(model):
        raise no_such(f"model {name}", "timm", model, timm.list_models())
    defaults = timm.get_pretrained_cfg(model)
    shape = _shape(name, getattr(defaults, "input_size", ()))

    def create(in_chans: int = 3, num_classes: int | None = None) -> Any:
        return timm.create_model(
            model, pretrained=False, in_chans=in_chans, num_classes=num_classes
        )

    return Foreign(create, shape)


def _torchvision(name: str, model: str) -> Foreign:
    models = import_named(f"model {name}", "torchvision.models")
    known = models.list_models(module=models)
    if model not in known:
        raise no_such(f"model {name}", "torchvision", model, known)
    create = partial(models.get_model, model, weights=None)

    def build(in_channels: int = 3, num_classes: int = 1000) -> Any:
        if in_channels != 3:
            raise UserError(
                f"model {name}: torchvision's networks take 3 channels, got {in_channels}"
            )
        return create(num_classes=num_classes)

    return Foreign(build, (3, 224, 224))


_LIBRARIES: dict[str, Callable[[str, str], Foreign]] = {
    "timm": _timm,
    "torchvision": _torchvision,
}
