"""TVM's virtual machine on a library that `qtool export --target tvm` made, for CPU or GPU."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.lib.stride_tricks import as_strided

from qtool.core.errors import UserError
from qtool.core.sealed import function_names, network_facts, read_seal
from qtool.core.tvm_env import require_tvm
from runtimes.base import Artifact, Codes, Floats, Inputs


def require_loadable(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise `UserError` unless TVM is installed and this machine can run the module.

    Args:
        path: the module, for the message.
        facts: what its seal says: "cpu", and "device" of code for a GPU.
    """
    require_tvm()
    from runtimes.host_cpu import refuse_foreign_cpu
    from runtimes.host_gpu import refuse_foreign_gpu

    refuse_foreign_cpu(path, facts["cpu"])
    if facts.get("device") is not None:
        refuse_foreign_gpu(path, facts["device"])


class TvmRuntime:
    """A model.so, called with one batch of its compiled size at a time.

    Args:
        path: shared library. Loading it runs native code: only open files you trust.
        pair: of bit-widths, of a library of several, such as ``w4a8``.

    Raises:
        UserError: no TVM; no sealed library; compiled for a CPU that this machine is not;
            a pair that it does not have, or none of several.
    """

    @classmethod
    def require(cls, artifact: Artifact | None) -> None:
        """Refuse a machine without TVM, and code of another CPU."""
        require_tvm()
        if artifact is not None:
            require_loadable(artifact.path, artifact.facts)

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        """Load a library; TVM takes the number of threads from ``TVM_NUM_THREADS``."""
        return cls(artifact.path, artifact.pair)

    def __init__(self, path: Path, pair: str | None = None) -> None:
        self._seal = read_seal(path)
        self._take(path, pair)
        require_loadable(path, self.metadata)
        import tvm
        from tvm import relax

        self._device = tvm.cpu() if self.metadata.get("device") is None else tvm.cuda()
        self._tensor, self._made = tvm.runtime.tensor, dict[str, Any]()
        # The loader hands out the library that it first saw under a name: use a fresh name.
        self._folder = tempfile.TemporaryDirectory(prefix="qtool-tvm-")
        fresh = Path(self._folder.name) / "model.so"
        try:
            shutil.copyfile(path, fresh)
            self._vm = relax.VirtualMachine(tvm.runtime.load_module(str(fresh)), self._device)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"model {path}: TVM cannot load it: {reason}") from None

    def at(self, pair: str) -> Self:
        """Return another pair of the same library, which is not loaded again.

        Raises:
            UserError: a pair that it does not have.
        """
        other = copy(self)
        other._take(self._path, pair)
        return other

    def _take(self, path: Path, pair: str | None) -> None:
        self._path, self._names = path, function_names(pair)
        self.metadata: dict[str, Any] = network_facts(self._seal, pair, f"model {path}")

    def run(self, x: Inputs) -> Floats:
        """Return the float output of every image."""
        outputs: Floats = self._call(self._names[0], x)
        return outputs

    def _call(self, function: str, x: Inputs) -> Any:
        """Return what `function` of the library does for every part of `x`, in one array."""
        given, call = self._weights(), self._vm[function]
        parts = [
            as_array(call(self._tensor(part, self._device), *given)) for part in self._parts(x)
        ]
        return np.concatenate(parts)[: len(x)]

    def _weights(self) -> list[Any]:
        """Return what is made of the library's weights for this pair: once, for `at` too."""
        name = self.metadata.get("weights")
        if name is None:
            return []
        if name not in self._made:
            self._made[name] = self._vm[name]()
        return [self._made[name]]

    def intermediates(self, x: Inputs) -> dict[str, Codes]:
        """Return every integer tensor that is written to memory, in execution order.

        Those that live inside a kernel only are absent: "fused_tensors" of the seal.
        """
        memory = self._call(self._names[1], x)
        places = self.metadata["module"]["trace"]
        return {name: codes_at(memory, **place) for name, place in places.items()}

    def float_ops(self) -> Counter[str]:
        """Count tensors between kernels that the module's functions do not write as uint8."""
        return Counter(self.metadata["module"]["float_tensors"])

    def _parts(self, x: Inputs) -> list[Inputs]:
        size = int(self.metadata["batch"])
        wanted = _image(self.metadata["input_shape"], self.metadata["input_kind"])
        got = _image(x.shape[1:], x.dtype)
        if got != wanted:
            raise UserError(f"module was compiled for images of {wanted}, got {got}")
        if self.metadata.get("device") is not None and len(x):
            # A GPU fills its batch at no cost: with the last image again.
            x = np.concatenate([x, x[-1:].repeat(-len(x) % size, 0)])
        if not len(x) or len(x) % size:
            raise UserError(f"module was compiled for batches of {size}, got {len(x)} images")
        return [np.ascontiguousarray(x[i : i + size]) for i in range(0, len(x), size)]


def as_array(result: Any) -> Any:
    """Return a tensor as an array; several as one, (N, bytes) of each side by side."""
    if hasattr(result, "numpy"):
        return result.numpy()
    arrays = [tensor.numpy() for tensor in result]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], 1)


def _image(shape: Sequence[int], kind: object) -> str:
    """Return shape and type of an image in words."""
    return f"{'x'.join(map(str, shape))} {kind}"


def codes_at(memory: Codes, offset: int, shape: list[int], strides: list[int]) -> Codes:
    """Return a tensor (N, ...) from what ``trace`` returns.

    Args:
        memory: (N, bytes).
        offset: of its first element.
        shape: without the batch.
        strides: in bytes, without the batch.
    """
    first = memory[:, offset:]
    view = as_strided(first, (len(memory), *shape), (memory.strides[0], *strides))
    return np.ascontiguousarray(view)
