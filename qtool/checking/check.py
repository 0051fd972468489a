"""Check deployed files: accuracy, parity, cost, integer coverage, latency.

Files that hold the same model (equal digest, say model.onnx and model.so of one export) are
checked together and make one report; `qtool check --json` writes it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qtool.checking.accuracy import glue_choices, top1, torch_accuracy
from qtool.checking.collect import Checked
from qtool.checking.models import Model, choose_runtimes, open_models, open_runtime
from qtool.checking.parity import compare_runtimes, island_differences, island_ops
from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.data import load_dataset
from qtool.data.images import DataSet
from qtool.data.random_inputs import RandomInputs, random_inputs
from runtimes.isa import read_isa
from runtimes.latency import measure


def check_model(
    model: Model, data: DataSet | RandomInputs, runtimes: Sequence[str], run: Path | None,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Return the report of one model (see README for its schema)."""
    _require_shape(model, data)
    checked, coverage, expected = Checked(), {}, {}
    for name in runtimes:
        runtime = open_runtime(model, name)
        checked.add(model, runtime, data, progress)
        coverage[name] = dict(runtime.float_ops())
        expected[name] = island_ops(runtime, model)
    accuracy: dict[str, float] = {}
    if isinstance(data, DataSet):
        accuracy = torch_accuracy(model, run, data) if run else {}
        accuracy |= {name: top1(y, data.test) for name, y in checked.outputs.items()}
    measured = "ort" if "ort" in runtimes else runtimes[-1]
    paths, isa = [path for path in (model.onnx, model.library) if path], read_isa()
    return {
        "files": {str(path): path.stat().st_size for path in paths},
        "digest": model.facts["digest"],
        "dataset": data.name,
        "images": len(data),
        "accuracy": accuracy,
        **glue_choices(run),
        **({} if model.module is None else {"tvm": model.module}),
        "isa": isa.to_json(),
        "parity": compare_runtimes(model, checked, isa),
        "bops": model.facts["bops"],
        "macs": model.facts["macs"],
        "layers": model.facts["layers"],
        "weight_bytes": model.facts["weight_bytes"],
        "file_bytes": paths[0].stat().st_size,
        "integer_coverage": {"runtime": measured, "float_ops": coverage[measured]}
        | expected[measured],
        "islands": island_differences(model, checked, data),
        "float_ops": coverage,
        "latency_ms": _latencies(model, runtimes, progress),
    }


def _require_shape(model: Model, data: DataSet | RandomInputs) -> None:
    if tuple(model.facts["input_shape"]) != data.shape:
        raise UserError(
            f"data set {data.name} has images {data.shape}, the model expects "
            f"{tuple(model.facts['input_shape'])}; choose with --data"
        )


def _latencies(model: Model, runtimes: Iterable[str], progress: Progress) -> dict[str, Any]:
    shape, result = tuple(model.facts["input_shape"]), {}
    for name in runtimes:
        path = model.path_for(name)
        if name != "reference" and path is not None:
            progress.note(f"measuring the latency of {name}")
            result[name] = measure(path, name, shape, kind=model.facts["input_kind"])
    return result


def check(
    files: Sequence[Path],
    folder: Path | str | None,
    runtimes: Sequence[str] | None,
    run: Path | None,
    progress: Progress,
    dataset: str | None = None,
) -> list[dict[str, Any]]:
    """Return a report for each model among `files`.

    Args:
        files: artifacts.
        folder: of the data set's files, or package.module:factory.
        runtimes: their names; None for all exact ones that have an artifact.
        run: whose torch models to run too.
        progress: where the user sees what is going on.
        dataset: name; without it the one that the file names, else random inputs.
    """
    reports = []
    for model in open_models(files):
        chosen = choose_runtimes(model, runtimes)
        name = dataset or model.facts["dataset"]
        if name is None:
            data: DataSet | RandomInputs = random_inputs(model.facts)
        else:
            data = load_dataset(
                name, folder, model.facts["input_shape"][-1], model.facts["frames"]
            )
        reports.append(check_model(model, data, chosen, run, progress))
    return reports
