"""The demo as a script: the four steps of qtool, called as a library.

    python examples/demo.py [FOLDER]

Trains on the embedded Fashion-MNIST subset with MetaMix, searches bits under 50 MBOPs, exports
to ONNX and TVM and checks that three runtimes compute the same integers. About four minutes.
"""

import sys
from pathlib import Path

from passes.emit.onnx.target import OnnxTarget
from passes.emit.tvm.target import TvmTarget
from qtool.checking.bars import Bars, require
from qtool.checking.check import check
from qtool.core.progress import open_progress
from qtool.data import load_dataset
from qtool.export.adaptive import RunSource
from qtool.export.export import integer_model
from qtool.frontends.metamix import frontend as metamix
from qtool.recipes import load_recipe
from qtool.runs.run import Run
from qtool.search.request import Budget, Request
from qtool.search.runner import run_search


def main(folder: Path) -> None:
    """Run the chain in `folder` and print what it reached."""
    progress = open_progress()
    config = load_recipe("metamix_fashion")
    data = load_dataset(config.dataset)

    # 1. Train: float weights, then one meta-state for activations of 8, 4 and 3 bits.
    run = Run.create(folder / "run", config, data, resume=False, force=True)
    metamix.train(run, data, progress, resume=False)

    # 2. Search: bits per layer under a budget, then fine-tuning at these bits.
    (bits,) = run_search(run, data, Request((Budget(bops=50e6),)), progress)

    # 3. Compile: the integer dialect once, then as many targets as you like.
    dialect = integer_model(RunSource(run), bits=None)
    OnnxTarget().write(dialect, folder / "model.onnx")
    TvmTarget().write(dialect, folder / "model.so")

    # 4. Check the deployed files.
    files = [folder / "model.onnx", folder / "model.so"]
    (record,) = check(files, None, None, run.folder, progress)
    progress.close()
    require([record], Bars(max_bops=50e6, parity=True))
    print({layer: activation for layer, (_weight, activation) in bits["layers"].items()})
    print(record.accuracy, record.parity)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "qtool-demo"))
