"""All launches of a program at one batch size, and the tensors that they work on.

Tensors have the dialect's shapes, (N, C, H, W), and lie in memory as NHWC; some are views of
others. Where only the output is wanted, memory that nobody reads any more is used again.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtool.core.dialect import Op, Program, Reshape, Slice, Transpose
from qtool.core.errors import UserError
from runtimes.triton.device import Device
from runtimes.triton.launch import Launch

# Kernels count elements in int32.
_MOST = 2**31 - 1
# Bytes that are read at once, at least.
_WORD = 4
# Operators whose results may be views of what they read.
_VIEWS = (Reshape, Slice, Transpose)

# By the output of a layer and a name: what is made of its constants, on the device.
Constants = dict[tuple[str, str], Tensor]


class Plan:
    """Launches in execution order, and tensors by name.

    Args:
        program: what is executed.
        batch: images at once.
        device: where.
        constants: of layers; what is missing is added.
        keep: every tensor has memory of its own, to be read afterwards.

    Raises:
        UserError: a tensor has more elements than kernels count.
    """

    def __init__(
        self, program: Program, batch: int, device: Device, constants: Constants, keep: bool
    ) -> None:
        self.device, self.launches = device, list[Launch]()
        self._constants, self.batch = constants, batch
        self._memory = _Memory(program, device, keep)
        kind = torch.uint8 if program.input_kind == "uint8" else torch.float32
        self.input = torch.empty(
            self._sized(program.input_name, program.input_shape), dtype=kind,
            device=device.torch,
        )  # fmt: skip
        self.tensors: dict[str, Tensor] = {program.input_name: self.input}

    def read(self, op: Op, index: int = 0) -> Tensor:
        """Return an input of `op`, (N, ...)."""
        return self.tensors[op.inputs[index]]

    def result(self, op: Op, kind: torch.dtype = torch.int8) -> Tensor:
        """Return memory for the result of `op`, (N, C, ...), channels innermost."""
        return self._nhwc(op.output, op.shape, kind)

    def image(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return memory for the codes of the model's input, as `result`.

        A pixel of three channels has four bytes, so that the first layer reads words; what is
        in the fourth does not matter.
        """
        channels, *spatial = shape
        wide = self._nhwc(name, (whole_words(channels), *spatial), torch.int8)
        return wide[:, :channels]

    def _nhwc(self, name: str, shape: Sequence[int], kind: torch.dtype) -> Tensor:
        batch, channels, *spatial = self._sized(name, shape)
        size = batch * prod(shape) * kind.itemsize
        flat = self._memory.take(name, size).view(kind)
        return flat.view(batch, *spatial, channels).movedim(-1, 1)

    def constant(self, op: Op, name: str, make: Callable[[], NDArray[Any]]) -> Tensor:
        """Return what `make` makes of the layer `op`, on the device; it is made once."""
        key = (op.output, name)
        if key not in self._constants:
            array = np.ascontiguousarray(make())
            self._constants[key] = torch.from_numpy(array).to(self.device.torch)
        return self._constants[key]

    def launch(
        self, name: str, kernel: Any, grid: Sequence[int], args: Sequence[Any],
        constants: Mapping[str, Any], **options: Any,
    ) -> None:  # fmt: skip
        """Add a launch; its arguments are those of `Launch`."""
        self.launches.append(
            Launch(name, kernel, tuple(grid), tuple(args), constants, options)
        )

    def finish(self, index: int, op: Op, result: Tensor) -> None:
        """Note the result of the program's operator `index`, the last that was planned."""
        self.tensors[op.output] = result
        self._memory.give_back(index)

    def run(self) -> None:
        """Launch everything."""
        with np.errstate(over="ignore"):  # the interpreter is numpy; inf saturates as codes do
            for launch in self.launches:
                launch()

    def _sized(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        if self.batch * prod(shape) > _MOST:
            raise UserError(
                f"tensor {name}: {self.batch} images of {'x'.join(map(str, shape))} are more "
                f"than the {_MOST:,} elements that the kernels of runtime triton count; run "
                "fewer images at once"
            )
        return (self.batch, *shape)


def whole_words(channels: int) -> int:
    """Return how many bytes of whole words hold a pixel: 3 channels are 4 bytes."""
    return -(-channels // _WORD) * _WORD


class _Memory:
    """Bytes on the device, used again once no later operator reads them.

    A tensor and its views live as long as the last reader of any of them. `blocks` are all
    that there are.
    """

    def __init__(self, program: Program, device: Device, keep: bool) -> None:
        self._device, self.blocks = device.torch, list[Tensor]()
        self._free: list[Tensor] = []
        self._taken: dict[str, list[Tensor]] = {}
        self._owner: dict[str, str] = {}
        last: dict[str, int] = {}
        for index, op in enumerate(program.ops):
            known = [self._owner.get(name, name) for name in op.inputs]
            self._owner[op.output] = known[0] if isinstance(op, _VIEWS) else op.output
            for owner in (*known, self._owner[op.output]):
                last[owner] = index
        last.pop(self._owner.get(program.output, program.output))
        self._ends: dict[int, list[str]] = {}
        for owner, index in {} if keep else last.items():
            self._ends.setdefault(index, []).append(owner)

    def take(self, tensor: str, size: int) -> Tensor:
        """Return `size` bytes for `tensor`, int8; the smallest block that fits."""
        fitting = [block for block in self._free if block.numel() >= size]
        if fitting:
            block = min(fitting, key=Tensor.numel)
            self._free = [other for other in self._free if other is not block]
        else:
            block = torch.empty(size, dtype=torch.int8, device=self._device)
            self.blocks.append(block)
        self._taken.setdefault(self._owner.get(tensor, tensor), []).append(block)
        return block[:size]

    def give_back(self, index: int) -> None:
        """Take back what nobody reads behind operator `index`."""
        for owner in self._ends.get(index, []):
            self._free += self._taken.pop(owner, [])
