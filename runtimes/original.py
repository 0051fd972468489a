"""A foreign ONNX file in ONNX Runtime as it is written, every tensor of it.

Without graph optimizations: what a file means is what its operators say one by one. Fused
kernels round elsewhere, and on some CPUs saturate (`runtimes.isa`).
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from qtool.core.errors import UserError


def run_original(
    path: Path,
    tensors: Collection[str],
    images: Sequence[NDArray[Any]],
    output: str | None = None,
) -> dict[str, NDArray[Any]]:
    """Return the output under its name, and those of `tensors` that the file has.

    Args:
        path: the file, with one input.
        tensors: names; those that no node of the file makes are left out.
        images: (C, H, W) each; a batch that the file fixes is filled with copies.
        output: a tensor that stands for the output; None for the file's first one.

    Returns:
        (N, ...) by name, the output first.

    Raises:
        UserError: ONNX Runtime cannot load or run it.
    """
    model = onnx.load(path)
    made = {name for node in model.graph.node for name in node.output}
    first = output or model.graph.output[0].name
    names = [first, *(name for name in tensors if name in made and name != first)]
    own = {value.name for value in model.graph.output}
    new = [onnx.ValueInfoProto(name=name) for name in names if name not in own]
    model.graph.output.extend(new)
    try:
        session = _session(model)
        parts = [_run(session, names, image) for image in images]
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: ONNX Runtime cannot run it: {reason}") from None
    return {name: np.stack(column) for name, column in zip(names, zip(*parts, strict=True),
                                                           strict=True)}  # fmt: skip


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _run(
    session: onnxruntime.InferenceSession, names: Sequence[str], image: NDArray[Any]
) -> list[NDArray[Any]]:
    """Return the tensors of one image, each without the batch."""
    source = session.get_inputs()[0]
    batch = source.shape[0] if isinstance(source.shape[0], int) else 1
    fed = np.repeat(image[None], batch, 0)
    return [np.asarray(result)[0] for result in session.run(names, {source.name: fed})]
