"""Tensors of a network in evaluation that know their integers, as the device has them.

`OnGrid` is a tensor on a grid. `Lazy` stands for the result of an operator on such tensors
until a quantizer says on which grid it is wanted: the device rounds once, from the accumulator
to that grid, and so does the network in evaluation. Both compute

1. moves (Flatten, MaxPool2d, Concat, ...): the same on codes;
2. ReLU and other bounds: the window;
3. add, mul, average pools, Sigmoid and other tables: `qtool.nn.ops.int_grid`.
Any other function of torch sees float values.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from qtool.core import numerics
from qtool.nn.ops import int_grid
from qtool.nn.ops.int_grid import IntGrid

Make = Callable[[IntGrid], Tensor]
Function = Callable[..., Any]


class Lazy(Tensor):
    """Float values that the device has as integers; made by `lazy`.

    Args:
        make: from a grid to centred codes on it.
        plain: computes the float values, if something asks for them.
    """

    make: Make
    plain: Callable[[], Tensor]
    known: Tensor | None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute `func` on integers where the device does."""
        name, given = getattr(func, "__name__", ""), dict(kwargs or {})
        first = next((key for key in ("input", "tensors", "self") if key in given), None)
        if not args and first is not None:
            args = (given.pop(first),)
        if name in _LEAVING:
            return func(*map(values, args), **given)
        in_place = given.pop("inplace", False)
        if args and isinstance(args[0], Lazy) and (in_place or _changes(name)):
            return _overwritten(args[0], func, name, args[1:], given)
        found = _on_integers(name, func, args, given)
        if found is not None:
            return found
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **given)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute anything else on float values."""
        return func(*tree_map(values, args), **tree_map(values, kwargs or {}))


class OnGrid(Lazy):
    """Values on a grid; made by `on_grid`.

    Args:
        codes: q minus the zero point, float32 integers.
        grid: scale, zero point and window.
    """

    codes: Tensor
    grid: IntGrid


L = TypeVar("L", bound=Lazy)


def _wrap(kind: type[L], like: Tensor, shape: Any, make: Make, plain: Any) -> L:
    made: L = Tensor._make_wrapper_subclass(
        kind, shape, dtype=torch.float32, device=like.device
    )
    made.make, made.plain, made.known = make, plain, None
    return made


def lazy(like: Tensor, shape: Any, make: Make, plain: Callable[[], Tensor]) -> Lazy:
    """Return a `Lazy` of this shape, on the device of `like`."""
    return _wrap(Lazy, like, shape, make, plain)


def on_grid(codes: Tensor, grid: IntGrid) -> OnGrid:
    """Return ``codes * scale``; `codes` are centred."""
    made = _wrap(
        OnGrid, codes, codes.shape, lambda wanted: int_grid.regrid(codes, grid, wanted),
        lambda: codes * float(grid.scale),
    )  # fmt: skip
    made.codes, made.grid = codes, grid
    return made


def quantized(x: Tensor, grid: IntGrid) -> OnGrid:
    """Return `x`, lazy or float values, on `grid`."""
    return on_grid(x.make(grid) if isinstance(x, Lazy) else int_grid.quantize(x, grid), grid)


def values(x: Any) -> Any:
    """Return the float values of a lazy tensor; anything else as it is."""
    if not isinstance(x, Lazy):
        return x
    if x.known is None:
        x.known = x.plain()
    return x.known


def _changes(name: str) -> bool:
    """True for functions that write to their first argument: ``relu_``, ``x[:, 0] = y``."""
    return name == "__setitem__" or (name[-1:] == "_" and name[:2] != "__")


def _on_integers(name: str, func: Function, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return the result on integers; None where the device computes floats."""
    handler = _HANDLERS.get(name)
    if handler is None:
        return None
    try:
        _signature(handler).bind(func, *args, **kwargs)
    except TypeError:  # an argument under which it is another operator
        return None
    return handler(func, *args, **kwargs)


_signature = lru_cache(maxsize=None)(inspect.signature)


def _overwritten(x: Lazy, func: Any, name: str, args: tuple[Any, ...], kwargs: Any) -> Lazy:
    """Let `x` become the result of a function that changes it: others may read it too."""
    twin = _wrap(type(x), x, x.shape, x.make, x.plain)
    twin.__dict__.update(x.__dict__)
    result = _on_integers(name.rstrip("_"), func, (twin, *args), kwargs)
    if result is None:
        floats = values(twin).clone()
        made = func(floats, *map(values, args), **kwargs)
        floats = floats if _changes(name) else made
        result = lazy(x, x.shape, partial(int_grid.quantize, floats), lambda: floats)
    x.__class__ = type(result)
    x.__dict__.clear()
    x.__dict__.update(result.__dict__)
    return x


def _floats(x: Lazy) -> Callable[[], Tensor]:
    """Return what computes the float values that `x` has now: it may be written to later."""
    known, plain = x.known, x.plain
    return lambda: plain() if known is None else known


# What torch's functions are on integers: None where the device computes floats.


def _move(
    func: Function, x: Any, *args: Any, return_indices: bool = False, **kwargs: Any
) -> Any:
    if return_indices or not isinstance(x, Lazy):
        return None

    def moved(tensor: Tensor) -> Any:
        return func(tensor, *args, **kwargs)

    if isinstance(x, OnGrid):
        grid = x.grid
        return tree_map(lambda codes: on_grid(codes, grid), moved(x.codes))
    shapes = moved(torch.empty(x.shape, device="meta"))
    make, floats = x.make, _floats(x)
    if isinstance(shapes, Tensor):
        return lazy(x, shapes.shape, lambda g: moved(make(g)), lambda: moved(floats()))

    def part(index: int, shape: Any) -> Lazy:
        return lazy(x, shape, lambda g: moved(make(g))[index], lambda: moved(floats())[index])

    return tuple(part(index, made.shape) for index, made in enumerate(shapes))


def _dropout(
    func: Function, x: Any, p: float = 0.5, training: bool = True, **kwargs: Any
) -> Any:
    return None if training else x


def _pad(
    func: Function, x: Any, pad: Any, mode: str = "constant", value: float | None = None
) -> Any:
    padded = None if mode != "constant" or value else _move(func, x, pad)
    if padded is None or isinstance(padded, OnGrid):
        return padded
    make = padded.make  # bounds that come behind bound the 0 too
    return lazy(x, padded.shape, lambda g: g.clip(make(g)), padded.plain)


def _interpolate(func: Function, x: Any, *args: Any, **kwargs: Any) -> Any:
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "nearest")
    return _move(func, x, *args, **kwargs) if mode == "nearest" else None


def _concat(func: Function, parts: Any, *args: Any, **kwargs: Any) -> Any:
    if not all(isinstance(part, Lazy) for part in parts):
        return None

    def joined(tensors: Iterable[Tensor]) -> Tensor:
        result: Tensor = func(list(tensors), *args, **kwargs)
        return result

    shape = joined(torch.empty(part.shape, device="meta") for part in parts).shape
    makes, floats = [part.make for part in parts], [_floats(part) for part in parts]
    return lazy(
        parts[0], shape, lambda g: joined(make(g) for make in makes),
        lambda: joined(each() for each in floats),
    )  # fmt: skip


def _hardtanh(func: Function, x: Lazy, min_val: float = -1.0, max_val: float = 1.0) -> Lazy:
    return _bounded(x, min_val, max_val)


def _clamp(func: Function, x: Any, min: Any = None, max: Any = None) -> Lazy | None:
    ends = [(-torch.inf if min is None else min), (torch.inf if max is None else max)]
    if not isinstance(x, Lazy) or any(isinstance(end, Tensor) for end in ends):
        return None
    return _bounded(x, float(ends[0]), float(ends[1]))


def _bounded(x: Lazy, low: float, high: float) -> Lazy:
    make, floats = x.make, _floats(x)
    return lazy(
        x, x.shape, lambda g: make(g.narrowed(low, high)), lambda: floats().clamp(low, high)
    )


def _add(func: Function, a: Any, other: Any, alpha: float = 1) -> Lazy | None:
    return _combined("add", func, a, other) if alpha == 1 else None


def _mul(func: Function, a: Any, other: Any) -> Lazy | None:
    return _combined("multiply", func, a, other)


def _combined(name: str, func: Function, a: Any, b: Any) -> Lazy | None:
    if not (isinstance(a, OnGrid) and isinstance(b, OnGrid)):
        return None
    shape = torch.Size(np.broadcast_shapes(a.shape, b.shape))
    # A broadcast operand is ONNX Runtime's second.
    one, other = (a, b) if a.shape == shape else (b, a)
    pairs = one.codes, one.grid, other.codes, other.grid
    first, second = _floats(a), _floats(b)
    return lazy(
        a,
        shape,
        lambda g: int_grid.combine(name, *pairs, g),
        lambda: func(first(), second()),
    )


def _average_pool(
    func: Function, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
) -> Lazy | None:  # fmt: skip
    varies = ceil_mode or (not count_include_pad and np.any(padding))
    if varies or divisor_override is not None or not isinstance(x, OnGrid):
        return None
    codes, floats = x.codes, _floats(x)
    sums = func(codes, kernel_size, stride, padding, False, True, 1)
    count = int(np.prod(np.broadcast_to(kernel_size, 2)))
    found = int_grid.Accumulator(
        sums, x.grid.scale, np.full(x.shape[1], 1 / count, np.float32)
    )
    return lazy(
        x, sums.shape, found.requantize, lambda: func(floats(), kernel_size, stride, padding)
    )


def _global_average(func: Function, x: Any, output_size: Any) -> Lazy | None:
    if not isinstance(x, OnGrid) or tuple(np.broadcast_to(output_size, 2)) != (1, 1):
        return None
    codes, grid, floats = x.codes, x.grid, _floats(x)
    return lazy(
        x, (*x.shape[:2], 1, 1), lambda g: int_grid.average(codes, grid, g),
        lambda: func(floats(), output_size),
    )  # fmt: skip


def _table(
    function: Function, func: Function, x: Any, *args: Any, **kwargs: Any
) -> Lazy | None:
    if not isinstance(x, OnGrid):
        return None
    codes, grid, floats = x.codes, x.grid, _floats(x)
    return lazy(
        x, x.shape, lambda g: int_grid.look_up(codes, grid, g, function),
        lambda: func(floats(), *args, **kwargs),
    )  # fmt: skip


def _leaky(func: Function, x: Any, negative_slope: float = 0.01) -> Lazy | None:
    return _table(partial(numerics.leaky_table, negative_slope), func, x, negative_slope)


def _hard_sigmoid(func: Function, x: Any) -> Lazy | None:
    one = x.numel() == len(x)
    return _table(partial(numerics.hard_sigmoid_table, one), func, x)


def _function(function: numerics.Function) -> Function:
    return partial(_table, partial(numerics.lookup_table, function))


# What takes a tensor out of torch.
_LEAVING = (
    "numpy",
    "tolist",
    "item",
    "__array__",
    "__deepcopy__",
    "__reduce_ex__",
    "__repr__",
)
_MOVES = (
    "flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "unflatten",
    "narrow", "chunk", "split", "clone", "contiguous", "channel_shuffle", "__getitem__",
)  # fmt: skip
_HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_MOVES, _move), "max_pool2d": _move, "pad": _pad,
    "interpolate": _interpolate, "upsample": _interpolate, "dropout": _dropout,
    "dropout2d": _dropout, "cat": _concat, "concat": _concat, "concatenate": _concat,
    "relu": lambda func, x: _bounded(x, 0.0, torch.inf),
    "relu6": lambda func, x: _bounded(x, 0.0, 6.0),
    "hardtanh": _hardtanh, "clamp": _clamp, "clip": _clamp,
    "add": _add, "mul": _mul, "multiply": _mul, "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _global_average, "leaky_relu": _leaky, "hardsigmoid": _hard_sigmoid,
    "sigmoid": _function(numerics.sigmoid), "silu": _function(numerics.silu),
    "tanh": _function(np.tanh),
    "hardswish": _function(lambda x: x * numerics.hard_sigmoid(x)),
}  # fmt: skip
