"""Which integer instructions this CPU has, and whether ONNX Runtime's u8s8 products saturate.

Without VNNI, x86 kernels add pairs of u8 x s8 products in int16 (VPMADDUBSW), where
255 * 127 * 2 does not fit: sums saturate and results are silently wrong. Whether that happens
is measured, not concluded from the CPU's name.

Source: Intel SDM, VPMADDUBSW and VPDPBUSD; ONNX Runtime, "Quantize ONNX models".
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from runtimes.base import Codes

CPUINFO = Path("/proc/cpuinfo")
# flag in /proc/cpuinfo: name; the best first, on each architecture.
_FLAGS = {
    "amx_int8": "amx_int8", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni",
    "avx512bw": "avx512bw", "avx2": "avx2", "sse4_1": "sse4.1",
    "i8mm": "neon i8mm", "asimddp": "neon dotprod", "asimd": "neon",
}  # fmt: skip

Convolve = Callable[[Codes, NDArray[np.int8]], Codes]
# A sum of 64 products of the largest codes; one step of the result is 2^14 of them.
_CHANNELS = 64
_STEP = 2.0**14


@dataclass(frozen=True)
class Isa:
    """The integer instructions of a CPU.

    Args:
        features: their names, the best first.
        wrong: probed u8s8 sums that came out wrong.
        probed: u8s8 sums that were compared with numpy.
    """

    features: tuple[str, ...]
    wrong: int
    probed: int

    @property
    def saturates(self) -> bool:
        """Whether u8s8 products saturate here."""
        return self.wrong > 0

    def __str__(self) -> str:
        """``avx512_vnni, u8s8 exact``."""
        if not self.saturates:
            return f"{self.features[0]}, u8s8 exact"
        wrong = f"{self.wrong} of {self.probed} probed sums are wrong"
        return f"{self.features[0]}, u8s8 SATURATES in ONNX Runtime: {wrong}"

    def to_json(self) -> dict[str, Any]:
        """Return the entry ``isa`` of a report."""
        return {
            "summary": str(self), "name": self.features[0], "features": list(self.features),
            "u8s8_exact": not self.saturates, "wrong": self.wrong, "probed": self.probed,
        }  # fmt: skip


def read_isa() -> Isa:
    """Return this machine's instructions, with u8s8 sums measured in ONNX Runtime."""
    return Isa(integer_features(), *detect_saturation())


def integer_features(cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Return the integer instruction sets, the best first; the architecture if none is known.

    Args:
        cpuinfo: Linux's list of flags ("flags" on x86, "Features" on Arm).
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    listed = (line for line in lines if line.lower().startswith(("flags", "features")))
    flags = set(next(listed, "").partition(":")[2].split())
    names = tuple(name for flag, name in _FLAGS.items() if flag in flags)
    return names or (platform.machine() or "unknown",)


def detect_saturation(convolve: Convolve | None = None) -> tuple[int, int]:
    """Return how many u8s8 sums are wrong, and how many were probed.

    Args:
        convolve: 1x1 convolution of codes (1, C, 1, W) with weights (O, C) on grids of step
            `_STEP` x (1, 1) and zero points 0; that of ONNX Runtime if not given.
    """
    x = np.full((1, _CHANNELS, 1, 16), 255, np.uint8)
    x[..., ::2] = 254
    w = np.full((32, _CHANNELS), 127, np.int8)
    w[::2, : _CHANNELS // 4] = -127  # sums of both signs, all of them in range
    sums = np.einsum("ncyx,oc->noyx", x.astype(np.int64), w.astype(np.int64))
    expected = np.clip(np.rint(sums / _STEP), 0, 255).astype(np.uint8)
    got = (convolve or _convolve)(x, w)
    return int((got != expected).sum()), expected.size


def _convolve(x: Codes, w: NDArray[np.int8]) -> Codes:
    """Run one QLinearConv in ONNX Runtime."""
    one, zero = np.float32(1), np.uint8(0)
    constants = {
        "one": one, "zero": zero, "w": w.reshape(*w.shape, 1, 1), "w_zero": np.int8(0),
        "step": np.float32(_STEP),
    }  # fmt: skip
    node = onnx.helper.make_node(
        "QLinearConv", ["x", "one", "zero", "w", "one", "w_zero", "step", "zero"], ["y"]
    )
    describe = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "probe",
        [describe("x", onnx.TensorProto.UINT8, x.shape)],
        [describe("y", onnx.TensorProto.UINT8, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: Codes = session.run(None, {"x": x})[0]
    return result
