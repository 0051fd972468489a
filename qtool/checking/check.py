"""Check deployed files: accuracy, parity, cost, integer coverage, latency.

Files that hold the same model (equal digest, say model.onnx and model.so of one export) are
checked together and make one record; `qtool check --json` writes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qtool.checking.accuracy import glue_choices, top1, torch_accuracy
from qtool.checking.collect import Checked
from qtool.checking.models import Model, choose_runtimes, file_bytes, open_models
from qtool.checking.original import Origins, compare_original
from qtool.checking.parity import compare_runtimes, island_differences, island_ops
from qtool.checking.record import CheckRecord, Coverage, Instructions, Module
from qtool.checking.speed import FLOAT, latencies, opened_baselines, slow, why_slow
from qtool.core.errors import UserError, listed
from qtool.core.progress import Progress
from qtool.core.records import from_json
from qtool.data import load_dataset
from qtool.data.images import DataSet
from qtool.data.random_inputs import RandomInputs, random_inputs
from runtimes.base import Artifact, TellsDevice, TellsTables
from runtimes.isa import read_isa
from runtimes.registry import RUNTIMES


@dataclass(frozen=True)
class Task:
    """What is checked of every model.

    Args:
        origins: where they come from.
        baselines: files of what the integers replace (`qtool.checking.speed`).
        progress: where the user sees what is going on.
    """

    origins: Origins
    baselines: Mapping[str, Path]
    progress: Progress


def check_model(
    model: Model, data: DataSet | RandomInputs, runtimes: Mapping[str, Artifact], task: Task
) -> CheckRecord:
    """Return the record of one model, its `runtimes` run on `data`, each with its file."""
    _require_shape(model, data)
    _require_classes(model, data)
    run, origin = task.origins.reference, task.origins.original
    checked, engines = _run_all(model, data, runtimes, task.progress)
    witness = None if origin is None else compare_original(model, checked, data, origin)
    sizes = {artifact.name: file_bytes(artifact) for artifact in model.ordered}
    facts, isa = model.facts, read_isa()
    times = latencies(runtimes, task.baselines, task.progress)
    whole = task.baselines.get(FLOAT)
    return CheckRecord(
        files=sizes,
        digest=facts["digest"],
        dataset=data.name,
        images=len(data),
        accuracy=_accuracy(model, data, checked, run),
        glue=glue_choices(run),
        modules=_modules(model),
        isa=from_json(Instructions, isa.to_json()),
        parity=compare_runtimes(model, checked, isa),
        original=witness,
        bops=facts["bops"],
        macs=facts["macs"],
        layers={name: (bits[0], bits[1]) for name, bits in facts["layers"].items()},
        zero_shot=facts.get("zero_shot"),
        weight_bytes=facts["weight_bytes"],
        file_bytes=next(iter(sizes.values())),
        integer_coverage=_measured({name: each.coverage for name, each in engines.items()}),
        islands=island_differences(model, checked, data),
        float_ops={name: each.coverage.float_ops for name, each in engines.items()},
        devices={n: each.device for n, each in engines.items() if each.device} or None,
        latency_ms=times,
        slow=slow(times, {name: each.why_slow for name, each in engines.items()}),
        fp32_file_bytes=None if whole is None else whole.stat().st_size,
    )


def _accuracy(
    model: Model, data: DataSet | RandomInputs, checked: Checked, run: Path | None
) -> dict[str, float]:
    """Return the accuracy in percent of torch's networks and of the runtimes."""
    if not isinstance(data, DataSet):
        return {}
    found = torch_accuracy(model, run, data) if run else {}
    return found | {name: top1(y, data.test) for name, y in checked.outputs.items()}


@dataclass(frozen=True)
class Engine:
    """What a runtime executes: float operators, what may make it slow, and on what device."""

    coverage: Coverage
    why_slow: str | None
    device: str | None


def _run_all(
    model: Model, data: DataSet | RandomInputs, runtimes: Mapping[str, Artifact],
    progress: Progress,
) -> tuple[Checked, dict[str, Engine]]:  # fmt: skip
    """Return what the runtimes answer, and what they execute."""
    checked, engines = Checked(), dict[str, Engine]()
    for name, artifact in runtimes.items():
        runtime = RUNTIMES[name].open(artifact)
        checked.add(name, runtime, model, data, progress)
        ops = dict(runtime.float_ops())
        tables = runtime.table_ops() if isinstance(runtime, TellsTables) else None
        coverage = Coverage(name, ops, island_ops(runtime, model))
        device = runtime.device if isinstance(runtime, TellsDevice) else None
        engines[name] = Engine(coverage, why_slow(tables, ops), device)
    return checked, engines


def _require_shape(model: Model, data: DataSet | RandomInputs) -> None:
    if tuple(model.facts["input_shape"]) != data.shape:
        raise UserError(
            f"data set {data.name} has images {data.shape}, the model expects "
            f"{tuple(model.facts['input_shape'])}; choose with --data"
        )


def _require_classes(model: Model, data: DataSet | RandomInputs) -> None:
    """Refuse labels that mean other classes than the model's, where it names its own."""
    known = model.facts.get("classes", [])  # files of an earlier qtool do not say
    if not known or not isinstance(data, DataSet):
        return
    if list(data.names) == known or (not data.names and data.classes == len(known)):
        return
    found = f"{data.classes} classes" + (f" ({listed(data.names)})" if data.names else "")
    raise UserError(
        f"data set {data.name} has {found}, the model tells apart {len(known)} "
        f"({listed(known)}): give a folder of these with --data"
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


def check(
    files: Sequence[Path],
    folder: Path | str | None,
    runtimes: Sequence[str] | None,
    run: Path | None,
    progress: Progress,
    dataset: str | None = None,
    original: Path | None = None,
    float_file: Path | None = None,
    pairs: str | None = None,
    beside: Sequence[str] = (),
) -> list[CheckRecord]:
    """Return a record for each model among `files`.

    Args:
        files: artifacts.
        folder: of the data set's files, or package.module:factory.
        runtimes: their names; None for `runtimes.registry.UNASKED` that have an artifact.
        run: whose torch models to run too.
        progress: where the user sees what is going on.
        dataset: name; without it the one that the file names, else random inputs.
        original: the run or the imported file to compare with, tensor by tensor.
        float_file: the run's float network as ONNX, where it is exported already.
        pairs: which of a file of several pairs; None for all.
        beside: runtimes that are used too, whatever `runtimes` says.
    """
    origins = Origins(run, original, float_file)
    origins.check()
    with opened_baselines(origins, progress) as baselines:
        task = Task(origins, baselines, progress)
        records = []
        for model in open_models(files, pairs):
            # Before data are loaded: what is missing is said at once.
            chosen = choose_runtimes(model, runtimes, beside)
            records.append(check_model(model, _data(model, folder, dataset), chosen, task))
    return records


def _data(
    model: Model, folder: Path | str | None, dataset: str | None
) -> DataSet | RandomInputs:
    """Return what one model is run on, as `check` says."""
    facts = model.facts
    name = dataset or facts["dataset"]
    if name is None:
        return random_inputs(facts)
    return load_dataset(name, folder, facts["input_shape"][-1], facts["frames"])
