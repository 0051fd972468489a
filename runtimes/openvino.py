"""OpenVINO on the CPU: fast, and not exact (docs/openvino.md says where, and by how much).

It reads the same QDQ file as ONNX Runtime, fuses it in its own way and computes what it leaves
in floating point as float32: its own choice on CPUs with AVX512-BF16 would be bfloat16.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

from qtool.core.errors import UserError
from runtimes.base import Artifact, Codes, Floats, Inputs

INSTALL = "pip install 'qtool[openvino]'"
CONFIG = {"INFERENCE_PRECISION_HINT": "f32"}

# Layers of the execution graph that move data or stand for constants.
_MOVES = {
    "Input", "Output", "Const", "Reorder", "Reshape", "Convert", "Transpose", "Squeeze",
    "Unsqueeze", "Concatenation", "Split", "StridedSlice",
}  # fmt: skip
_FLOATS = {"f32", "f16", "bf16", "f64"}


def require_openvino() -> None:
    """Raise `UserError` unless OpenVINO is installed; imports nothing."""
    try:
        metadata.version("openvino")
    except metadata.PackageNotFoundError:
        raise UserError(f"runtime openvino needs openvino, not installed: {INSTALL}") from None


class OpenVinoRuntime:
    """An ONNX file in OpenVINO, compiled once for every batch size that it meets.

    Args:
        path: model.onnx.
        tensors: names of integer tensors that `intermediates` returns.
        threads: threads of one inference.
        config: properties of OpenVINO's CPU device, over `CONFIG`.
    """

    @classmethod
    def require(cls, artifact: Artifact | None) -> None:
        """Refuse a machine without OpenVINO."""
        require_openvino()

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        """Load an ONNX file."""
        return cls(artifact.path, artifact.tensors, threads)

    def __init__(
        self,
        path: Path,
        tensors: Sequence[str] = (),
        threads: int = 1,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        require_openvino()
        import openvino

        self.path, self.tensors = path, list(tensors)
        self._config = {**CONFIG, "INFERENCE_NUM_THREADS": threads, **(config or {})}
        self._model, self._core = openvino.Model, openvino.Core()
        self._compiled: dict[tuple[int, ...], Any] = {}

    def run(self, x: Inputs) -> Floats:
        """Return the first output."""
        if x.shape not in self._compiled:
            self._compiled[x.shape] = self._compile(self._read(x.shape))
        result: Floats = np.array(self._compiled[x.shape](x)[0])
        return result

    def intermediates(self, x: Inputs) -> dict[str, Codes]:
        """Return the integer tensors, each from the part of the model that ends in it.

        One model with all of them as outputs would not tell: further outputs stop OpenVINO
        from fusing layers, and with that from rounding as it does in `run`.
        """
        model = self._read(x.shape)
        values = [value for node in model.get_ordered_ops() for value in node.outputs()]
        ends = {name: value for value in values for name in value.get_names()}
        return {
            name: np.array(
                self._compile(self._model([ends[name]], model.get_parameters(), name))(x)[0]
            )
            for name in self.tensors
        }

    def float_ops(self) -> Counter[str]:
        """Count float layers of the graph that OpenVINO really executes, at batch 1."""
        shape = (1, *(int(str(size)) for size in list(self._read(None).inputs[0].shape)[1:]))
        compiled = self._compile(self._read(shape))
        return count_float_layers(_layers(compiled.get_runtime_model()))

    def _read(self, shape: Sequence[int] | None) -> Any:
        """Return the file's model, for inputs of `shape` where one is given."""
        try:
            model = self._core.read_model(str(self.path))
            if shape is None:
                model.reshape([1, *list(model.inputs[0].partial_shape)[1:]])
            else:
                model.reshape(list(shape))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{self.path}: OpenVINO cannot load it: {reason}") from None
        return model

    def _compile(self, model: Any) -> Any:
        return self._core.compile_model(model, "CPU", self._config)


@dataclass(frozen=True)
class Layer:
    """A layer of OpenVINO's execution graph.

    Args:
        name: unique name.
        kind: its `layerType`, such as "Convolution".
        precision: its `runtimePrecision`; what it puts out where it has none of its own.
        result: precision of what it puts out.
        inputs: names of the layers that it reads.
    """

    name: str
    kind: str
    precision: str
    result: str
    inputs: tuple[str, ...]


def _layers(graph: Any) -> list[Layer]:
    """Return the layers of a compiled model's `get_runtime_model()`, in execution order."""
    layers = []
    for node in graph.get_ordered_ops():
        info = node.get_rt_info()
        kind, precision, result = (
            str(info[key].astype(str)).split(",")[0] if key in info else ""
            for key in ("layerType", "runtimePrecision", "outputPrecisions")
        )
        if precision in ("", "dynamic", "undefined"):
            precision = result
        reads = tuple(value.get_node().get_friendly_name() for value in node.input_values())
        layers.append(Layer(node.get_friendly_name(), kind, precision, result, reads))
    return layers


def count_float_layers(layers: Sequence[Layer]) -> Counter[str]:
    """Count layers that compute in floating point behind the input's Q and before the last DQ.

    Args:
        layers: an execution graph, every layer behind those that it reads.
    """
    constant = {layer.name for layer in layers if layer.kind == "Const"}
    outside = _leads_to_output(layers)  # dequantizes the result
    raw: set[str] = set()  # tensors that hold the model's float input
    counts: Counter[str] = Counter()
    for layer in layers:
        data = [name for name in layer.inputs if name not in constant]
        from_input = bool(data) and all(name in raw for name in data)
        if not data and layer.kind != "Input":
            constant.add(layer.name)  # weights: computed once, when the model is loaded
        elif layer.kind == "Input" or (layer.kind in _MOVES and from_input):
            raw.add(layer.name)
        elif from_input and layer.result in ("u8", "i8"):
            continue  # quantizes the input
        elif layer.kind not in _MOVES and layer.precision in _FLOATS:
            counts[layer.kind] += layer.name not in outside
    return +counts


def _leads_to_output(layers: Sequence[Layer]) -> set[str]:
    """Return the element-wise layers whose result only travels to an output."""
    readers: dict[str, list[Layer]] = {layer.name: [] for layer in layers}
    for layer in layers:
        for name in layer.inputs:
            readers[name].append(layer)
    travels: set[str] = set()
    ends: set[str] = set()
    for layer in reversed(layers):
        targets = readers[layer.name]
        if layer.kind == "Output" or (targets and all(t.name in travels for t in targets)):
            if layer.kind in _MOVES:
                travels.add(layer.name)
            elif layer.kind in ("Eltwise", "Subgraph"):
                ends.add(layer.name)
    return ends
