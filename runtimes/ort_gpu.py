"""ONNX Runtime on NVIDIA GPUs, through its CUDA or its TensorRT provider.

They read the same QDQ file as the CPU. Neither promises the reference's integers, which a
check counts all the same:

- CUDA has no integer convolution for QDQ graphs: most layers stay ``DQ -> Conv -> Q``, in
  float. `float_ops` counts them in the graph that this provider optimizes, not in the CPU's.
- TensorRT compiles parts of the graph into engines of its own, which it does not show; each
  counts as one operator that is not known to be integer.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime

from qtool.core.errors import UserError
from runtimes.base import Artifact
from runtimes.ort import OrtRuntime, not_started, start_session

ENGINE = "TensorRT engine"
_NOTHING = """<ir_version: 10, opset_import: ["" : 21]>
nothing (float[1] x) => (float[1] y) { y = Identity(x) }"""
_KINDS = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


def require_provider(provider: str) -> None:
    """Start `provider` on nothing, before anything takes long.

    Raises:
        UserError: this build of ONNX Runtime lacks it, or this machine its GPU or libraries.
    """
    known = onnxruntime.get_available_providers()
    if provider not in known:
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} was built without {provider} (it has "
            f"{', '.join(known)}): pip uninstall onnxruntime, pip install onnxruntime-gpu"
        )
    # What fails is said below, in one line.
    onnxruntime.set_default_logger_severity(4)
    nothing = onnx.parser.parse_model(_NOTHING).SerializeToString()
    try:
        start_session(nothing, 1, Path("nothing"), provider)
    except UserError:
        raise not_started(provider) from None


class OrtCudaRuntime(OrtRuntime):
    """An ONNX file in ONNX Runtime's CUDA provider."""

    provider: ClassVar[str] = "CUDAExecutionProvider"

    @classmethod
    def require(cls, artifact: Artifact | None) -> None:
        """Refuse a machine on which the provider does not start."""
        require_provider(cls.provider)


class OrtTensorRtRuntime(OrtRuntime):
    """An ONNX file in ONNX Runtime's TensorRT provider."""

    provider: ClassVar[str] = "TensorrtExecutionProvider"

    @classmethod
    def require(cls, artifact: Artifact | None) -> None:
        """Refuse a machine on which the provider does not start."""
        require_provider(cls.provider)

    def float_ops(self) -> Counter[str]:
        """Count engines, of which nothing is known, and float operators outside of them."""
        with tempfile.TemporaryDirectory() as folder:
            session = start_session(
                self._model, self.threads, self.path, self.provider,
                enable_profiling=True, profile_file_prefix=str(Path(folder) / "run"),
            )  # fmt: skip
            session.run(None, dict(_zeros(session)))
            events = json.loads(Path(session.end_profiling()).read_text())
        return opaque_ops(events, self.provider)


def opaque_ops(events: list[dict[str, Any]], provider: str) -> Counter[str]:
    """Count what a profile shows of operators that compute on floats, or on nobody knows what.

    Args:
        events: of ONNX Runtime's profile of one run.
        provider: whose operators are engines.
    """
    found: Counter[str] = Counter()
    for event in events:
        ran = event.get("args", {})
        if event.get("cat") != "Node" or not str(event.get("name")).endswith("_kernel_time"):
            continue
        if ran.get("provider") == provider:
            found[ENGINE] += 1
        elif ran.get("op_name") not in ("QuantizeLinear", "DequantizeLinear") and any(
            "float" in kinds for kinds in ran.get("output_type_shape", ())
        ):
            found[str(ran.get("op_name"))] += 1
    return found


def _zeros(
    session: onnxruntime.InferenceSession,
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield a batch of one for every input."""
    for given in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in given.shape]
        yield given.name, np.zeros(shape, _KINDS[given.type])
