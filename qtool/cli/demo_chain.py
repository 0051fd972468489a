"""The whole chain on the embedded images: train, search, export, check."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from passes.emit.onnx.target import OnnxTarget
from passes.emit.tvm.target import TvmTarget
from qtool.checking.check import check
from qtool.core.files import refuse_existing, write_bytes, write_json
from qtool.core.progress import Progress
from qtool.core.tvm_env import require_tvm
from qtool.data import load_dataset
from qtool.export.adaptive import RunSource
from qtool.export.export import export_float, integer_model
from qtool.recipes import load_recipe
from qtool.report.bits import bits_picture, bits_table
from qtool.report.table import check_table
from qtool.search.request import Budget, Request

RECIPE = "metamix_fashion"
# The BOPs of the same network with every activation at 4 bits are 50,995,200.
BUDGET_BOPS = 50e6


def run_demo(out: Path, force: bool, progress: Progress) -> list[Table]:
    """Fill `out` with model.onnx, model.so, bits.json, bits.png, check.json and the run.

    Returns:
        Tables to show.
    """
    refuse_existing(out / "check.json", force)
    require_tvm()
    began = time.monotonic()
    run_folder, onnx_path, library = out / "run", out / "model.onnx", out / "model.so"
    bits = _train_and_search(run_folder, progress)
    progress.note("exporting to ONNX and TVM")
    dialect = integer_model(RunSource.open(run_folder), None)
    OnnxTarget().write(dialect, onnx_path, progress.note)
    TvmTarget().write(dialect, library, progress.note)
    export_float(run_folder, out / "fp32.onnx")
    write_bytes(out / "bits.json", (run_folder / "bits.json").read_bytes())
    bits_picture(bits, out / "bits.png")
    (record,) = check(
        [onnx_path, library], None, None, run_folder, progress, original=run_folder,
        float_file=out / "fp32.onnx",
    )  # fmt: skip
    record = replace(
        record,
        fp32_accuracy=record.accuracy["float"],
        budget_bops=BUDGET_BOPS,
        seconds=round(time.monotonic() - began, 1),
    )
    write_json(out / "check.json", record.to_json())
    return [bits_table(bits), check_table(record)]


def _train_and_search(folder: Path, progress: Progress) -> dict[str, Any]:
    from qtool.frontends.metamix import frontend as metamix
    from qtool.runs.run import Run
    from qtool.search.runner import run_search

    config = load_recipe(RECIPE)
    data = load_dataset(config.dataset)
    run = Run.create(folder, config, data, resume=False, force=True)
    metamix.train(run, data, progress, resume=False)
    request = Request((Budget(BUDGET_BOPS),))
    (content,) = run_search(run, data, request, progress)
    return content
