"""Check deployed files: accuracy, parity, cost, integer coverage, latency.

Files that hold the same model (equal digest, say model.onnx and model.so of one export) are
checked together and make one record; `qtool check --json` writes it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from qtool.checking.accuracy import glue_choices, top1, torch_accuracy
from qtool.checking.collect import Checked
from qtool.checking.models import Model, choose_runtimes, open_models
from qtool.checking.parity import compare_runtimes, island_differences, island_ops
from qtool.checking.record import CheckRecord, Coverage, Instructions, Module
from qtool.core.errors import UserError
from qtool.core.progress import Progress
from qtool.core.records import from_json
from qtool.data import load_dataset
from qtool.data.images import DataSet
from qtool.data.random_inputs import RandomInputs, random_inputs
from runtimes.base import Artifact
from runtimes.isa import read_isa
from runtimes.latency import Latency, measure
from runtimes.registry import RUNTIMES


def check_model(
    model: Model, data: DataSet | RandomInputs, runtimes: Mapping[str, Artifact],
    run: Path | None, progress: Progress,
) -> CheckRecord:  # fmt: skip
    """Return the record of one model, its `runtimes` run on `data`, each with its file."""
    _require_shape(model, data)
    checked, coverage = _run_all(model, data, runtimes, progress)
    accuracy: dict[str, float] = {}
    if isinstance(data, DataSet):
        accuracy = torch_accuracy(model, run, data) if run else {}
        accuracy |= {name: top1(y, data.test) for name, y in checked.outputs.items()}
    sizes = {str(artifact.path): artifact.path.stat().st_size for artifact in model.ordered}
    facts, isa = model.facts, read_isa()
    return CheckRecord(
        files=sizes,
        digest=facts["digest"],
        dataset=data.name,
        images=len(data),
        accuracy=accuracy,
        glue=glue_choices(run),
        modules=_modules(model),
        isa=from_json(Instructions, isa.to_json()),
        parity=compare_runtimes(model, checked, isa),
        bops=facts["bops"],
        macs=facts["macs"],
        layers={name: (bits[0], bits[1]) for name, bits in facts["layers"].items()},
        weight_bytes=facts["weight_bytes"],
        file_bytes=next(iter(sizes.values())),
        integer_coverage=_measured(coverage),
        islands=island_differences(model, checked, data),
        float_ops={name: found.float_ops for name, found in coverage.items()},
        latency_ms=_latencies(runtimes, progress),
    )


def _run_all(
    model: Model, data: DataSet | RandomInputs, runtimes: Mapping[str, Artifact],
    progress: Progress,
) -> tuple[Checked, dict[str, Coverage]]:  # fmt: skip
    """Return what the runtimes answer, and which float operators they execute."""
    checked, coverage = Checked(), dict[str, Coverage]()
    for name, artifact in runtimes.items():
        runtime = RUNTIMES[name].open(artifact)
        checked.add(name, runtime, model, data, progress)
        ops = dict(runtime.float_ops())
        coverage[name] = Coverage(name, ops, island_ops(runtime, model))
    return checked, coverage


def _require_shape(model: Model, data: DataSet | RandomInputs) -> None:
    if tuple(model.facts["input_shape"]) != data.shape:
        raise UserError(
            f"data set {data.name} has images {data.shape}, the model expects "
            f"{tuple(model.facts['input_shape'])}; choose with --data"
        )


def _modules(model: Model) -> dict[str, Module]:
    """Return what there is of compiled code, by the runtime that executes it."""
    found = {name: model.artifact(name) for name in RUNTIMES}
    return {
        name: from_json(Module, artifact.module)
        for name, artifact in found.items()
        if artifact is not None and artifact.module is not None
    }


def _measured(coverage: Mapping[str, Coverage]) -> Coverage:
    """Return the coverage that counts as the model's."""
    names = list(coverage)
    return coverage[next((name for name in names if RUNTIMES[name].covers), names[-1])]


def _latencies(runtimes: Mapping[str, Artifact], progress: Progress) -> dict[str, Latency]:
    result = {}
    for name, artifact in runtimes.items():
        if RUNTIMES[name].timed:
            progress.note(f"measuring the latency of {name}")
            facts = artifact.facts
            shape = tuple(facts["input_shape"])
            result[name] = measure(artifact.path, name, shape, kind=facts["input_kind"])
    return result


def check(
    files: Sequence[Path],
    folder: Path | str | None,
    runtimes: Sequence[str] | None,
    run: Path | None,
    progress: Progress,
    dataset: str | None = None,
) -> list[CheckRecord]:
    """Return a record for each model among `files`.

    Args:
        files: artifacts.
        folder: of the data set's files, or package.module:factory.
        runtimes: their names; None for all exact ones that have an artifact.
        run: whose torch models to run too.
        progress: where the user sees what is going on.
        dataset: name; without it the one that the file names, else random inputs.
    """
    records = []
    for model in open_models(files):
        chosen = choose_runtimes(model, runtimes)
        name = dataset or model.facts["dataset"]
        if name is None:
            data: DataSet | RandomInputs = random_inputs(model.facts)
        else:
            data = load_dataset(
                name, folder, model.facts["input_shape"][-1], model.facts["frames"]
            )
        records.append(check_model(model, data, chosen, run, progress))
    return records
