"""Another bit-width at every inference, by ONNX Runtime or TVM alone: no file is read again.

    qtool export RUN --bits all --target onnx -o DIR
    python examples/switch_bits.py DIR images.npy w8a8 w4a4

`images.npy` holds float32 images (N, C, H, W). Each goes through the named pairs in turn; the
time of an inference that follows one at other bits is printed beside that of one that does
not. Where DIR holds the modules too (qtool import DIR/w4a4.onnx -o DIR/w4a4.so, and so on),
TVM does the same. qtool need not be installed.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime

Run = Callable[[np.ndarray], np.ndarray]
ROUNDS = 20


def open_onnx(path: Path) -> Run:
    """Return the network in a file of the folder; its weights are in weights.bin beside it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


def open_tvm(path: Path) -> Run:
    """Return the network in a compiled module."""
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    return lambda image: machine["main"](tvm.runtime.tensor(image)).numpy()


def timed(networks: list[Run], images: np.ndarray) -> tuple[float, list[list[int]]]:
    """Return the median milliseconds of an inference, and every network's classes."""
    times, classes = [], [list[int]() for _ in networks]
    for image in images:
        for found, network in zip(classes, networks, strict=True):
            began = time.perf_counter()
            logits = network(image[None])
            times.append(time.perf_counter() - began)
            found.append(int(logits.argmax()))
    return 1000 * median(times), classes


def main() -> None:
    """Print times and classes."""
    folder, images, pairs = Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3:]
    images = np.concatenate([images] * ROUNDS)
    for engine, suffix, opened in (("onnx", ".onnx", open_onnx), ("tvm", ".so", open_tvm)):
        files = [folder / f"{pair}{suffix}" for pair in pairs]
        if not all(path.exists() for path in files):
            continue
        networks = [opened(path) for path in files]
        timed(networks, images)
        alone = [timed([network], images)[0] for network in networks]
        mixed, classes = timed(networks, images)
        for pair, found in zip(pairs, classes, strict=True):
            print(f"{engine} {pair}: classes {found[: len(images) // ROUNDS]}")
        print(f"{engine}: {sum(alone) / len(alone):.3f} ms alone, {mixed:.3f} ms in turn")


if __name__ == "__main__":
    main()
