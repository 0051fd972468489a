"""Check deployed files: accuracy, parity, cost, integer coverage, latency.

Files that hold the same model (equal digest, say model.onnx and model.so of one export) are
checked together and make one report; `qtool check --json` writes it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.data import load_dataset
from qtool.data.clips import clip_logits
from qtool.data.images import DataSet, Source, to_float
from qtool.data.random_inputs import RandomInputs, random_inputs
from qtool.describe import describe, describe_module
from qtool.dialect import Program
from qtool.errors import MissedBar, UserError, unknown_name
from qtool.pipeline import read_onnx
from qtool.progress import Progress
from qtool.sealed import read_seal
from runtimes import EXACT, RUNTIMES
from runtimes.base import Floats, Inputs, Runtime
from runtimes.compare import Parity, output_codes
from runtimes.isa import Isa, read_isa
from runtimes.latency import measure

TRACED_IMAGES = 32
ISLAND_IMAGES = 8  # numpy convolves slowly
_BATCH = 100


@dataclass
class Model:
    """The artifacts of one model.

    Args:
        facts: result of `qtool.pipeline.describe`.
        program: the dialect, where an ONNX file is among the artifacts.
        onnx, library: paths of model.onnx and model.so.
        module: what the library's seal says of its code (`describe_module`).
    """

    facts: dict[str, Any]
    program: Program | None = None
    onnx: Path | None = None
    library: Path | None = None
    module: dict[str, Any] | None = None

    def path_for(self, runtime: str) -> Path | None:
        """Return the artifact that `runtime` executes."""
        return self.library if runtime == "tvm" else self.onnx


@dataclass(frozen=True)
class Bars:
    """What `check` requires; None asks for nothing."""

    min_accuracy: float | None = None
    max_bops: float | None = None
    parity: bool = False


@dataclass
class Checked:
    """Float outputs of the whole test set, and integer tensors of the first images."""

    outputs: dict[str, Floats] = field(default_factory=dict)
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)


def open_models(files: Sequence[Path]) -> list[Model]:
    """Group `files` by model.

    Raises:
        UserError: unknown suffix, or a damaged file.
    """
    models: dict[str, Model] = {}
    for path in files:
        if path.suffix == ".onnx":
            program = read_onnx(path)
            facts = describe(program)
            model = models.setdefault(facts["digest"], Model(facts))
            model.program, model.onnx = program, path
        elif path.suffix == ".so":
            facts = read_seal(path)
            model = models.setdefault(facts["digest"], Model(facts))
            model.library = path
            model.module = describe_module(facts)
        else:
            raise UserError(f"{path}: unknown kind of file; expected .onnx or .so")
    return list(models.values())


def choose_runtimes(model: Model, wanted: Sequence[str] | None) -> list[str]:
    """Return the runtimes to use: those asked for, or all exact ones that have an artifact.

    Raises:
        UserError: an unknown runtime, one whose file or package is missing, or a library
            that was compiled for another CPU.
    """
    for name in wanted or ():
        if name not in RUNTIMES:
            raise unknown_name("runtime", name, RUNTIMES)
        if model.path_for(name) is None:
            kind = "model.so (qtool export --target tvm)" if name == "tvm" else "an .onnx file"
            raise UserError(f"runtime {name} needs {kind} of this model among the files")
    if "openvino" in (wanted or ()):
        from runtimes.openvino import require_openvino

        require_openvino()
    chosen = list(wanted) if wanted else [name for name in EXACT if model.path_for(name)]
    if "tvm" in chosen and model.library is not None and model.module is not None:
        from runtimes.tvm import require_loadable

        require_loadable(model.library, model.module["target"])
    return chosen


def open_runtime(model: Model, name: str) -> Runtime:
    """Load `model` into a runtime."""
    if name == "tvm" and model.library is not None:
        from runtimes.tvm import TvmRuntime

        return TvmRuntime(model.library)
    if model.onnx is None or model.program is None:
        raise UserError(f"runtime {name} needs an .onnx file")
    if name == "reference":
        from runtimes.reference import ReferenceRuntime

        return ReferenceRuntime(model.program)
    if name == "openvino":
        from runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime(model.onnx, model.facts["tensors"])
    from runtimes.ort import OrtRuntime

    return OrtRuntime(model.onnx, model.facts["tensors"])


def check_model(
    model: Model,
    data: DataSet | RandomInputs,
    runtimes: Sequence[str],
    run: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Return the report of one model (see README for its schema)."""
    if tuple(model.facts["input_shape"]) != data.shape:
        raise UserError(
            f"data set {data.name} has images {data.shape}, the model expects "
            f"{tuple(model.facts['input_shape'])}; choose with --data"
        )
    checked, coverage, expected = Checked(), {}, {}
    for name in runtimes:
        runtime = open_runtime(model, name)
        checked.outputs[name] = _run(model, runtime, data, progress)
        progress.note(f"reading every integer tensor of {TRACED_IMAGES} images from {name}")
        checked.tensors[name] = runtime.intermediates(_fed(model, data, slice(TRACED_IMAGES)))
        coverage[name] = dict(runtime.float_ops())
        expected[name] = _island_ops(runtime, model)
    accuracy: dict[str, float] = {}
    if isinstance(data, DataSet):
        accuracy = _torch_accuracy(model, run, data) if run else {}
        accuracy |= {name: _accuracy(y, data.test) for name, y in checked.outputs.items()}
    measured = "ort" if "ort" in runtimes else runtimes[-1]
    paths, isa = [path for path in (model.onnx, model.library) if path], read_isa()
    return {
        "files": {str(path): path.stat().st_size for path in paths},
        "digest": model.facts["digest"],
        "dataset": data.name,
        "images": len(data),
        "accuracy": accuracy,
        **_glue_choices(run),
        **({} if model.module is None else {"tvm": model.module}),
        "isa": isa.to_json(),
        "parity": _parity(model, checked, isa),
        "bops": model.facts["bops"],
        "macs": model.facts["macs"],
        "layers": model.facts["layers"],
        "weight_bytes": model.facts["weight_bytes"],
        "file_bytes": paths[0].stat().st_size,
        "integer_coverage": {"runtime": measured, "float_ops": coverage[measured]}
        | expected[measured],
        "islands": _islands(model, checked, data),
        "float_ops": coverage,
        "latency_ms": _latencies(model, runtimes, progress),
    }


def _island_ops(runtime: Runtime, model: Model) -> dict[str, Any]:
    """Return which of the float operators belong to the islands that the export allowed."""
    from runtimes.ort import OrtRuntime

    islands = model.program.islands() if model.program is not None else []
    if not islands or not isinstance(runtime, OrtRuntime):
        return {}
    return {"island_ops": dict(runtime.island_ops([op.grid for op in islands]))}


def _islands(
    model: Model, checked: Checked, data: DataSet | RandomInputs
) -> list[dict[str, Any]]:
    """Count how far each float island of ONNX Runtime is from numpy's."""
    if model.program is None or not model.program.islands():
        return []
    from runtimes.islands import compare_islands

    tensors = next(iter(checked.tensors.values()))
    head = {name: codes[:ISLAND_IMAGES] for name, codes in tensors.items()}
    return compare_islands(model.program, _fed(model, data, slice(ISLAND_IMAGES)), head)


def _fed(model: Model, data: DataSet | RandomInputs, part: slice) -> Inputs:
    """Return inputs (N, C, H, W) as the model takes them; pixels themselves, or / 255."""
    if isinstance(data, RandomInputs):
        return data.values[part]
    pixels = data.test.load(part)
    return pixels if model.facts["input_kind"] == "uint8" else to_float(pixels)


def _run(
    model: Model, runtime: Runtime, data: DataSet | RandomInputs, progress: Progress
) -> Floats:
    """Return the outputs for every image."""
    starts = range(0, len(data), _BATCH)
    progress.start(f"{runtime.name}", len(starts))
    parts = []
    for start in starts:
        parts.append(runtime.run(_fed(model, data, slice(start, start + _BATCH))))
        progress.step("")
    return np.concatenate(parts)


def _accuracy(outputs: Floats, images: Source) -> float:
    return _agreement(clip_logits(outputs, len(images)).argmax(1), images.labels)


def _agreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return how many of two lists of classes agree, in percent."""
    return 100 * int(np.count_nonzero(one == other)) / len(one)


def _parity(model: Model, checked: Checked, isa: Isa) -> dict[str, Any]:
    """Compare all with the first exact runtime: every logit, the first images' tensors."""
    names = list(checked.outputs)
    baseline = next((name for name in names if name in EXACT), names[0])
    ops = model.program.ops if model.program else ()
    kinds = {op.output: type(op).__name__ for op in ops}
    result: dict[str, Any] = {}
    for name in names:
        if name == baseline:
            continue
        parity, pair = Parity(), [checked.outputs[n] for n in (baseline, name)]
        fused = model.module["fused_tensors"] if name == "tvm" and model.module else ()
        parity.add_all(checked.tensors[baseline], checked.tensors[name], fused)
        before = parity.mismatched
        parity.add("logits", *(_codes(model, outputs) for outputs in pair))
        for entry in parity.diverging:
            entry["operator"] = kinds.get(entry["tensor"])
        result[name] = {
            "against": baseline, "required": name in EXACT, **parity.to_json(),
            "reason": _reason(model, name, baseline, isa) if parity.mismatched else None,
            "logits": {"mismatched": parity.mismatched - before, "compared": pair[0].size},
            "same_class": _agreement(pair[0].argmax(1), pair[1].argmax(1)),
        }  # fmt: skip
    return result


def _reason(model: Model, name: str, baseline: str, isa: Isa) -> str | None:
    """Return why runtime `name` differs from `baseline`, where that is known."""
    if name not in EXACT:
        return f"{name} rounds in its own way (docs/openvino.md)"
    if isa.saturates and "ort" in (name, baseline):
        return f"this CPU has {isa}"
    islands = [island["name"] for island in model.facts.get("islands", ())]
    return f"float islands ({', '.join(islands)}) promise no exactness" if islands else None


def _codes(model: Model, outputs: Floats) -> Any:
    """Return the integers behind the outputs; the bits of those that are float themselves."""
    if model.facts.get("output_kind") == "float32":
        return np.ascontiguousarray(outputs).view(np.int32)
    return output_codes(outputs, model.facts["output_scale"], model.facts["output_zero_point"])


def _latencies(model: Model, runtimes: Iterable[str], progress: Progress) -> dict[str, Any]:
    shape, result = tuple(model.facts["input_shape"]), {}
    for name in runtimes:
        path = model.path_for(name)
        if name != "reference" and path is not None:
            progress.note(f"measuring the latency of {name}")
            result[name] = measure(path, name, shape, kind=model.facts["input_kind"])
    return result


def _glue_choices(folder: Path | None) -> dict[str, Any]:
    """Return what `folder`'s run measured about choices of glue grids, if it did."""
    if folder is None:
        return {}
    from qtool.run import Run

    measured = Run.open(folder).metrics("glue")
    return {"glue": measured[-1]} if measured else {}


def _torch_accuracy(model: Model, folder: Path | None, data: DataSet) -> dict[str, float]:
    """Return the accuracy of the float and the fake-quantized network at the file's bits."""
    from qtool.frontends.pretrain import load_deployed, load_float
    from qtool.qspec import LayerBits, Selection
    from qtool.run import Run
    from qtool.training.evaluation import accuracy

    if folder is None:
        return {}
    run = Run.open(folder)
    layers = {name: LayerBits(*bits) for name, bits in model.facts["layers"].items()}
    prepared = load_deployed(run, Selection(layers))
    return {
        "float": accuracy(load_float(run), data.test),
        "fake_quant": accuracy(prepared, data.test),
    }


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


def missed_bars(report: dict[str, Any], bars: Bars) -> list[str]:
    """Return a sentence for every bar that `report` misses: which, and by how much."""
    deployed = {k: v for k, v in report["accuracy"].items() if k in RUNTIMES}
    missed = [
        f"accuracy in {name} is {value:.2f} %, {bars.min_accuracy - value:.2f} below the "
        f"required {bars.min_accuracy:g} %"
        for name, value in deployed.items()
        if bars.min_accuracy is not None and value < bars.min_accuracy
    ]
    if bars.max_bops is not None and report["bops"] > bars.max_bops:
        over = report["bops"] - bars.max_bops
        missed.append(f"BOPs are {report['bops']:,}, {over:,.0f} above {bars.max_bops:,.0f}")
    if bars.parity:
        missed += _missed_parity(report["parity"])
    return missed


def require(reports: Sequence[dict[str, Any]], bars: Bars) -> None:
    """Raise `MissedBar` if any of `reports` misses any of `bars`."""
    missed = [sentence for report in reports for sentence in missed_bars(report, bars)]
    if missed:
        raise MissedBar("; ".join(missed))


def _missed_parity(parity: dict[str, Any]) -> list[str]:
    required = {name: p for name, p in parity.items() if p["required"]}
    if not required:
        return [f"parity needs at least two runtimes to compare, of {', '.join(EXACT)}"]
    return [
        f"{name} differs from {p['against']} in {p['mismatched']:,} of {p['compared']:,} "
        f"integers (up to {p['max_lsb']} LSB, first at {p['first_divergence']['tensor']})"
        + (f": {p['reason']}" if p["reason"] else "")
        for name, p in required.items()
        if p["mismatched"]
    ]
