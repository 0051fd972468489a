"""ONNX Runtime, on the CPU; `runtimes.ort_gpu` has its providers for GPUs."""

import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import onnx
import onnxruntime
from onnx import numpy_helper

from qtool.core.dialect import Grid
from qtool.core.errors import UserError
from runtimes.base import Artifact, Codes, Floats, Inputs

# Where a model given as bytes has its external data.
_BESIDE = "session.model_external_initializers_file_folder_path"
# Operators of ONNX Runtime's optimized graphs that compute on integers only.
_INTEGER = {
    "QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat",
    "QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearLeakyRelu", "QLinearSigmoid",
    "QLinearSoftmax", "QLinearWhere", "MatMulInteger", "ConvInteger",
}  # fmt: skip
# Operators that keep the type of what they read.
_NEUTRAL = {
    "Clip", "MaxPool", "NhwcMaxPool", "Flatten", "Reshape", "Transpose", "Identity", "Max",
    "Min", "Squeeze", "Unsqueeze", "Pad", "Gather", "Concat", "Slice", "Split", "Resize",
}  # fmt: skip


class OrtRuntime:
    """An ONNX file in ONNX Runtime, all graph optimizations on.

    Args:
        path: model.onnx.
        tensors: names of integer tensors that `intermediates` returns.
        threads: intra-op threads.
        model: the file's content, where it is no file yet.
    """

    # ONNX Runtime's name of what executes; operators that it lacks go to the CPU.
    provider: ClassVar[str] = "CPUExecutionProvider"

    @classmethod
    def require(cls, artifact: Artifact | None) -> None:
        """ONNX Runtime is always here."""

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        """Load an ONNX file."""
        return cls(artifact.path, artifact.tensors, threads)

    @classmethod
    def from_bytes(cls, model: bytes, tensors: Sequence[str]) -> Self:
        """Load what is to become a file, on one thread."""
        return cls(Path("the model"), tensors, 1, model)

    def __init__(
        self,
        path: Path,
        tensors: Sequence[str] = (),
        threads: int = 1,
        model: bytes | None = None,
    ) -> None:
        self.path, self.tensors, self.threads = path, list(tensors), threads
        self._model = path.read_bytes() if model is None else model
        self._session = self._started(self._model)
        self._traced: Any = None

    def run(self, x: Inputs) -> Floats:
        """Return the first output."""
        feeds = {self._session.get_inputs()[0].name: x}
        result: Floats = self._session.run(None, feeds)[0]
        return result

    def intermediates(self, x: Inputs) -> dict[str, Codes]:
        """Return the integer tensors, read from a session that has them as further outputs."""
        if self._traced is None:
            self._traced = self._started(_with_outputs(self._model, self.tensors))
        feeds = {self._traced.get_inputs()[0].name: x}
        return dict(zip(self.tensors, self._traced.run(self.tensors, feeds), strict=True))

    def float_ops(self) -> Counter[str]:
        """Count float operators of the graph that ONNX Runtime really executes."""
        return count_float_ops(self._optimized)

    def island_ops(self, grids: Collection[Grid]) -> Counter[str]:
        """Count those of `float_ops` that belong to islands, whose results are on `grids`."""
        return count_island_ops(self._optimized, grids)

    def table_ops(self) -> tuple[int, int]:
        """Count ``Cast -> Gather`` tables, two operators each, and all operators."""
        nodes = self._optimized.graph.node
        casts = {name for node in nodes if node.op_type == "Cast" for name in node.output}
        tables = [n for n in nodes if n.op_type == "Gather" and casts & {*n.input}]
        return 2 * len(tables), len(nodes)

    @cached_property
    def _optimized(self) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            dumped = Path(folder) / "optimized.onnx"
            self._started(self._model, optimized_model_filepath=str(dumped))
            return onnx.load(dumped, load_external_data=False)

    def _started(self, model: bytes, **options: Any) -> onnxruntime.InferenceSession:
        return start_session(model, self.threads, self.path, self.provider, **options)


def start_session(
    model: bytes, threads: int, path: Path, provider: str, **more: Any
) -> onnxruntime.InferenceSession:
    """Load a model.

    Args:
        model: the content of an ONNX file.
        threads: intra-op threads.
        path: the file, for the message; constants that several files share are beside it.
        provider: ONNX Runtime's name of what is to execute it.
        more: attributes of its session options.

    Raises:
        UserError: ONNX Runtime refuses the model, or the provider does not start.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Fatal only: its warning that a dumped graph is tied to this machine is no news here.
    options.log_severity_level = 4
    if path.is_file():
        options.add_session_config_entry(_BESIDE, str(path.parent))
    for name, value in more.items():
        setattr(options, name, value)
    try:
        session = onnxruntime.InferenceSession(
            model, options, providers=[provider], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: ONNX Runtime cannot load it: {reason}") from None
    if provider not in session.get_providers():  # it goes on with the CPU alone
        raise not_started(provider)
    return session


def not_started(provider: str) -> UserError:
    """Return the refusal of a machine that lacks what `provider` runs on."""
    return UserError(
        f"ONNX Runtime's {provider} did not start: no GPU, driver or library of its own was "
        "found (nvidia-smi tells); leave it out to check on the CPU"
    )


def _with_outputs(data: bytes, tensors: Sequence[str]) -> bytes:
    """Return the model with `tensors` as its only outputs."""
    model = onnx.load_from_string(data)
    known = {info.name: info for info in model.graph.value_info}
    del model.graph.output[:]
    for name in tensors:
        if name in known:
            model.graph.output.append(known[name])
        else:
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None)
            )
    changed: bytes = model.SerializeToString()
    return changed


def count_float_ops(model: onnx.ModelProto) -> Counter[str]:
    """Count operators on float activations between the first Q and the last DQ."""
    return Counter(node.op_type for node in _float_nodes(model))


def count_island_ops(model: onnx.ModelProto, grids: Collection[Grid]) -> Counter[str]:
    """Count those between DequantizeLinear and a QuantizeLinear onto one of `grids`.

    Optimization renames tensors and fuses operators, but keeps the grids. A DequantizeLinear
    that nothing reads any more belongs to them too.
    """
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if not t.dims}
    pairs = {(float(grid.scale), grid.zero_point) for grid in grids}
    floats = _float_nodes(model)
    makers = {name: node for node in floats for name in node.output}
    read = {name for node in model.graph.node for name in node.input}
    waiting = [node for node in floats if not read & {*node.output}]
    for node in floats:
        on_grid = [values.get(name) for name in node.input[1:3]]
        if node.op_type == "QuantizeLinear" and None not in on_grid:
            scale, zero_point = on_grid
            waiting += [node] * ((float(scale), int(zero_point)) in pairs)  # type: ignore[arg-type]
    found: dict[str, str] = {}
    while waiting:
        node = waiting.pop()
        if node.output[0] not in found:
            found[node.output[0]] = node.op_type
            waiting += [makers[name] for name in node.input if name in makers]
    return Counter(found.values())


def _float_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes on float activations between the first Q and the last DQ.

    Types are followed from the inputs, because shape inference does not know contrib
    operators.
    """
    is_float = {
        value.name: value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        for value in model.graph.input
    }
    constants = {init.name for init in model.graph.initializer}
    ends = {value.name for value in [*model.graph.input, *model.graph.output]}
    found = []
    for node in model.graph.node:
        data = [name for name in node.input if name and name not in constants]
        reads_float = any(is_float.get(name, False) for name in data)
        makes_float = _makes_float(node, reads_float)
        is_float |= dict.fromkeys(node.output, makes_float)
        boundary = node.op_type in ("QuantizeLinear", "DequantizeLinear", "QGemm") and (
            ends & {*node.input, *node.output}
        )
        moves = node.op_type in ("Transpose", "Reshape", "Flatten") and ends & {*node.input}
        if (reads_float or makes_float) and not (boundary or moves):
            found.append(node)
    return found


def _makes_float(node: onnx.NodeProto, reads_float: bool) -> bool:
    if node.op_type == "QuantizeLinear":
        return False
    if node.op_type == "QGemm":
        return len(node.input) < 9 or not node.input[7]
    if node.op_type in _INTEGER:
        return False
    if node.op_type == "Cast":
        target = next(a.i for a in node.attribute if a.name == "to")
        return bool(target == onnx.TensorProto.FLOAT)
    if node.op_type in _NEUTRAL:
        return reads_float
    return True


def version() -> str:
    """Return ONNX Runtime's version."""
    return str(onnxruntime.__version__)
