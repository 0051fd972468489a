"""Another bit-width at every inference, by ONNX Runtime or TVM alone: no file is read again.

    qtool export RUN --bits all --target onnx -o DIR
    qtool export RUN --bits all --target tvm -o DIR
    python examples/switch_bits.py DIR images.npy w8a8 w4a4

`images.npy` holds float32 images (N, C, H, W). Each goes through the named pairs in turn; the
time of an inference that follows one at other bits is printed beside that of one that does
not: the difference is what a switch takes. Of the two exports one is enough. qtool need not be
installed.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import numpy as np
import onnxruntime

Run = Callable[[np.ndarray], np.ndarray]
ROUNDS = 20


def open_onnx(folder: Path, pairs: list[str]) -> list[Run]:
    """Return the networks in the folder's files; all weights are in weights.bin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(str(folder / f"{pair}.onnx"), options) for pair in pairs
    ]
    name = sessions[0].get_inputs()[0].name
    return [lambda image, s=session: s.run(None, {name: image})[0] for session in sessions]


def open_tvm(folder: Path, pairs: list[str]) -> list[Run]:
    """Return the networks in the folder's library: a function each.

    Weights that the library makes of wider ones are made here, once a width.
    """
    import tvm
    from tvm import relax

    library = tvm.runtime.load_module(str(folder / "model.so"))
    machine = relax.VirtualMachine(library, tvm.cpu())
    known = json.loads((folder / "model.json").read_text())["pairs"]
    made = {None: []} | {
        name: [machine[name]()] for name in {known[pair]["weights"] for pair in pairs} - {None}
    }
    calls = [(machine[pair], made[known[pair]["weights"]]) for pair in pairs]
    return [
        lambda image, call=call, weights=weights: call(
            tvm.runtime.tensor(image), *weights
        ).numpy()
        for call, weights in calls
    ]


def timed(networks: list[Run], images: np.ndarray) -> tuple[float, list[list[int]]]:
    """Return the milliseconds of an inference, and every network's classes.

    The median of each network, their mean: networks may differ in time.
    """
    times, classes = [list[float]() for _ in networks], [list[int]() for _ in networks]
    for image in images:
        for took, found, network in zip(times, classes, networks, strict=True):
            began = time.perf_counter()
            logits = network(image[None])
            took.append(time.perf_counter() - began)
            found.append(int(logits.argmax()))
    return 1000 * mean(map(median, times)), classes


def main() -> None:
    """Print times and classes."""
    folder, images, pairs = Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3:]
    images = np.concatenate([images] * ROUNDS)
    engines = {"onnx": ("index.json", open_onnx), "tvm": ("model.so", open_tvm)}
    for engine, (file, opened) in engines.items():
        if not (folder / file).exists():
            continue
        networks = opened(folder, pairs)
        timed(networks, images)
        alone = [timed([network], images)[0] for network in networks]
        turn, classes = timed(networks, images)
        for pair, found in zip(pairs, classes, strict=True):
            print(f"{engine} {pair}: classes {found[: len(images) // ROUNDS]}")
        once = mean(alone)
        print(
            f"{engine}: {once:.3f} ms alone, {turn:.3f} ms in turn: a switch takes "
            f"{turn - once:.3f} ms"
        )


if __name__ == "__main__":
    main()
