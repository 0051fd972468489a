"""One model in one engine, timed whenever a line comes in: a process of `interleaved`.

    python benchmarks/engine.py ENGINE MODEL THREADS SHAPE [KIND]

MODEL is a file, SHAPE an image as 3x224x224, KIND "float32" (default) or "uint8". Every engine
reads the caller's image where it lies, and returns its result in memory of its own.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import serve
from numpy.typing import NDArray

Call = Callable[[], object]


def ort(model: str, threads: int, x: NDArray[Any]) -> Call:
    """ONNX Runtime, all optimizations on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feeds)


def openvino(model: str, threads: int, x: NDArray[Any]) -> Call:
    """OpenVINO as it chooses, precision of what is float too; one stream, made for latency."""
    import openvino as ov

    core = ov.Core()
    network = core.read_model(model)
    network.reshape(list(x.shape))
    config = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads,
    }  # fmt: skip
    request = core.compile_model(network, "CPU", config).create_infer_request()
    return lambda: request.infer([x], share_inputs=True)


def tvm(model: str, threads: int, x: NDArray[Any]) -> Call:
    """TVM's virtual machine, function `main`."""
    os.environ["TVM_NUM_THREADS"] = str(threads)  # read when TVM starts its threads

    from qtool.core.tvm_env import require_tvm

    require_tvm()
    import tvm as t
    from tvm import relax

    machine = relax.VirtualMachine(t.runtime.load_module(model), t.cpu())
    run, tensor = machine["main"], t.runtime.tensor(x)
    return lambda: run(tensor)


def relay(model: str, threads: int, x: NDArray[Any]) -> Call:
    """TVM 0.19's graph executor; runs in the Python of `qtool setup relay`."""
    os.environ |= {"TVM_NUM_THREADS": str(threads), "TOPHUB_LOCATION": "NONE"}
    from qtool.core.relay.library import FEATURES, kept_code
    from qtool.core.relay.relay_file import MAIN, read_relay
    from qtool.core.relay.worker import Worker

    file, worker = read_relay(Path(model)), Worker()
    target = worker.target({"mcpu": None, "generated": FEATURES}, ())[0]["target"]
    if (code := kept_code(file, MAIN, target)) is not None:
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / "model.so"
            fresh.write_bytes(code)
            worker.load({"path": str(fresh)}, ())
    else:
        worker.build({"target": target}, (file.modules[MAIN], file.parameters))
    name = file.facts["input_name"]
    return lambda: worker.outputs(name, x)


def peak(model: str, threads: int, x: NDArray[Any]) -> Call:
    """The kernel of `vnni_peak`; `model` is its width in bits."""
    from vnni_peak import peak_call

    return peak_call(int(model))


# An engine opens a model and returns a call that makes one inference.
ENGINES: dict[str, Callable[[str, int, NDArray[Any]], Call]] = {
    "ort": ort, "openvino": openvino, "tvm": tvm, "relay": relay, "peak": peak,
}  # fmt: skip


def main() -> None:
    """Serve what the arguments name."""
    engine, model, threads, shape, *kind = sys.argv[1:]
    size = (1, *map(int, shape.split("x")))
    x = np.random.default_rng(1).random(size, np.float32)
    if kind == ["uint8"]:
        x = (x * 256).astype(np.uint8)
    serve(ENGINES[engine](model, int(threads), x))


if __name__ == "__main__":
    main()
