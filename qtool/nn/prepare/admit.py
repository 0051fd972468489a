"""Is a network one that can be quantized? All the reasons why not, in seconds, without data.

1. Its tensors (`qtool.models.state`).
2. It takes such images, twice with the same result, changes no buffer, and returns one tensor
   of floats (N, classes).
3. It can be captured; its layers can be quantized; its operators have integer forms.
4. Captured, and prepared with quantizers off, it computes what the user's module does
   (`qtool.nn.capture.compare`).

What makes a later question meaningless ends the list. The network is left as it was.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from qtool.core.errors import UnsupportedError
from qtool.core.importing import reason
from qtool.models.state import unusable_tensors, wrong_values
from qtool.nn.capture.capture import capture
from qtool.nn.capture.compare import Difference, compare, evaluating, sample_images
from qtool.nn.capture.in_place import IN_PLACE
from qtool.nn.prepare.constants import computed_constants, ignores_image
from qtool.nn.prepare.graph_view import GraphView
from qtool.nn.prepare.normal_form import normalise
from qtool.nn.prepare.prepare import prepare, sizes_of
from qtool.nn.prepare.refusals import float_operators, layer_refusals, shape_refusals
from qtool.nn.prepare.spec import QuantSpec

_ISLANDS = (
    "or --set allow_float=true trains with them, and qtool export --allow-float leaves them "
    "in floating point"
)


def admit(
    model: nn.Module,
    spec: QuantSpec,
    shape: Sequence[int],
    classes: int | None,
    name: str,
    allow_float: bool = False,
) -> None:
    """Refuse a network that cannot be quantized.

    Args:
        model: the user's, with its weights.
        spec: what will be put into it.
        shape: (C, H, W) of an image.
        classes: number of logits that the data set needs; None: any, of an embedding.
        name: of the network, for the error.
        allow_float: operators without an integer form are no reason.

    Raises:
        UnsupportedError: one line with every reason.
    """
    found = why_not(model, spec, shape, classes, allow_float)
    if len(found) == 1:
        raise UnsupportedError(f"model {name}: {found[0]}")
    if found:
        listed = "; ".join(f"({number}) {text}" for number, text in enumerate(found, 1))
        raise UnsupportedError(
            f"model {name} cannot be quantized, for {len(found)} reasons: {listed}"
        )


def why_not(
    model: nn.Module,
    spec: QuantSpec,
    shape: Sequence[int],
    classes: int | None,
    allow_float: bool = False,
) -> list[str]:
    """Return every reason for which `admit` refuses; none: it does not."""
    if found := unusable_tensors(model):
        return found
    found, x = [*_like_patterns(model), *wrong_values(model)], sample_images(shape)
    with _undisturbed(model):
        runs, faults = _forward_faults(model, x, classes, values=not found)
        found += faults
        if not runs:
            return found
        return found + _graph_faults(model, spec, None if found else x, shape, allow_float)


def _like_patterns(model: nn.Module) -> list[str]:
    """Return which layers are called as patterns of layers are: bits are asked for by name."""
    return [
        f"layer {name}: * ? [ in a name would make it a pattern of layers; give it another"
        for name, _ in model.named_modules()
        if any(sign in name for sign in "*?[")
    ]


def output_faults(model: nn.Module, shape: Sequence[int], classes: int) -> list[str]:
    """Return why `model` gives no logits (N, classes) for images `shape`, in evaluation."""
    with _undisturbed(model):
        return _forward_faults(model, sample_images(shape), classes, values=True)[1]


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Within this context `model` is in evaluation; then all is as before, seeds included."""
    with evaluating(model), _kept(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        yield


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Within this context, buffers may change; then they are as before."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            if name in before and not _same(buffer, before[name]):
                buffer.copy_(before[name])


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def _forward_faults(
    model: nn.Module, x: Tensor, classes: int | None, values: bool
) -> tuple[bool, list[str]]:
    """Return whether `model` runs on `x`, and what is wrong with how it does."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        result, again = model(x.clone()), model(x.clone())
    except Exception as error:  # forward() is the user's and may raise anything
        shape = "x".join(map(str, x.shape[1:]))
        hint = " (--set image_size=N changes images in files)"
        return False, [
            f"input {shape} does not fit the model: {reason(error)}"
            f"{hint if isinstance(error, RuntimeError) else ''}"
        ]
    if not isinstance(result, Tensor):
        return False, [
            f"forward() returns {_described(result)}, expected one tensor "
            f"(N, {'D' if classes is None else classes}): "
            "return the logits alone, or give a factory that wraps the network so"
        ]
    changed = [
        name for name, buffer in model.named_buffers()
        if name not in before or not _same(buffer, before[name])
    ]  # fmt: skip
    faults = [f"evaluation changes buffer {name}; a deployed model has no state"
              for name in changed]  # fmt: skip
    if not torch.equal(result.nan_to_num(), again.nan_to_num()) and not changed:
        faults.append(
            "one image gave two results: evaluation is random, or remembers; is dropout "
            "always on?"
        )
    return True, faults + _output_faults(result, len(x), classes, values)


def _output_faults(
    result: Tensor, images: int, classes: int | None, values: bool
) -> list[str]:
    """Return what is wrong with the network's output, whose values may be looked at or not."""
    if result.shape[:1] != (images,) or result.ndim != 2:
        shape = ", ".join(map(str, result.shape))
        wanted = "D): a vector" if classes is None else f"{classes}): one logit a class"
        return [
            f"its output for {images} images is a tensor ({shape}), expected ({images}, "
            f"{wanted}"
        ]
    if classes is not None and result.shape[1] != classes:
        return [
            f"it has {result.shape[1]} outputs, the data set {classes} classes: build the "
            f"network for {classes}, or take the data set it was made for"
        ]
    if result.dtype != torch.float32:
        return [f"its output is {str(result.dtype).removeprefix('torch.')}, expected float32"]
    if values and not result.isfinite().all():
        return ["its output is not finite on random pixels in [0, 1)"]
    return []


def _described(result: Any) -> str:
    """Return what a forward() gave: ``a tuple of 2 (Tensor (2, 5), Tensor (2, 8, 4, 4))``."""
    if isinstance(result, Tensor):
        return f"Tensor ({', '.join(map(str, result.shape))})"
    if isinstance(result, dict):
        return f"a dict of {len(result)} ({', '.join(map(str, result))})"
    if isinstance(result, tuple | list):
        parts = ", ".join(_described(part) for part in result[:4])
        more = ", ..." if len(result) > 4 else ""
        return f"a {type(result).__name__} of {len(result)} ({parts}{more})"
    return f"a {type(result).__name__}"


def _graph_faults(
    model: nn.Module,
    spec: QuantSpec,
    x: Tensor | None,
    shape: Sequence[int],
    allow_float: bool,
) -> list[str]:
    """Return what keeps a network that runs from being quantized as itself.

    Its values are compared on images `x`; None: they say nothing, something is wrong already.
    """
    try:
        captured = capture(model, shape)
    except UnsupportedError as error:
        return [str(error)]
    try:
        difference = None if x is None else compare(model, captured, x)
    except Exception as error:  # the user's operators may raise anything
        return [f"traced, it fails: {reason(error)}"]
    if difference:
        return [_unlike(model, captured, difference)]
    view, faults = GraphView(captured, spec.input_step is None), []
    if ignores_image(view):
        return ["its output does not depend on the image: forward() does not use its values"]
    sizes = sizes_of(view, shape)
    try:
        normalise(view, sizes)
    except UnsupportedError as error:
        faults.append(str(error))
    faults += [*layer_refusals(view), *shape_refusals(view, sizes)]
    faults += computed_constants(view).values()
    floats = [] if allow_float else float_operators(view)
    if floats:
        floats[-1] += f" ({_ISLANDS})"
    if faults or floats:
        return faults + floats
    return [] if x is None else _prepared_faults(model, spec, x)


def _prepared_faults(model: nn.Module, spec: QuantSpec, x: Tensor) -> list[str]:
    prepared = prepare(model, spec, tuple(x.shape[1:]))
    difference = compare(model, prepared, x)
    return [_unlike(model, prepared, difference)] if difference else []


def _unlike(model: nn.Module, traced: fx.GraphModule, difference: Difference) -> str:
    """Return where a graph differs, and the likely reason: hooks are what graphs leave out."""
    hooked = [
        path or type(model).__name__
        for path, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]
    if hooked:
        why = f"forward hooks ({', '.join(hooked)}) are not part of its graph; use modules"
    elif places := traced.meta.get(IN_PLACE):
        listed = ", ".join(dict.fromkeys(places))
        why = f"operators work in place ({listed}); let them make new tensors instead"
    else:
        why = "an option or a state of its forward() is not part of its graph"
    return f"prepared for quantization, {difference}: {why}"
