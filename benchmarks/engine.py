"""One model in one engine, timed whenever a line comes in: a process of `interleaved`.

python benchmarks/engine.py ENGINE FILE THREADS SIZE
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import serve
from numpy.typing import NDArray

Call = Callable[[], object]


def ort(path: Path, threads: int, x: NDArray[Any]) -> Call:
    """ONNX Runtime, all optimizations on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": x})


# An engine opens a file and returns a call that makes one inference.
ENGINES: dict[str, Callable[[Path, int, NDArray[Any]], Call]] = {"ort": ort}


if __name__ == "__main__":
    engine, file, count, size = sys.argv[1:]
    image = np.random.default_rng(1).random((1, 3, int(size), int(size)), np.float32)
    serve(ENGINES[engine](Path(file), int(count), image))
