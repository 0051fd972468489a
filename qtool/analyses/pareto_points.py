"""What a run directory says of its accuracy at its BOPs: one point, or one of every sub-run.

pareto.json   points of a search under several budgets, or hand-written:
              {"format": 1, "points": [{"run", "bops", "budget_bops", "accuracy",
              "deployed", "method", "weights", "activations"}, ...]}
bits.json     otherwise: BOPs and bits
check.json    `qtool check --json`: accuracy of the integer model, if its BOPs are the same
metrics.jsonl otherwise: the newest test accuracy, of the fake-quantized network
"""

from pathlib import Path
from typing import Any

from qtool.config import QatConfig
from qtool.errors import UserError
from qtool.files import read_json
from qtool.progress import Progress
from qtool.qspec import check_format, parse_uniform
from qtool.run import Run

PARETO_FORMAT = 1
# Runtimes that compute the reference's integers, first those that are asked for most.
_EXACT = ("reference", "ort", "tvm")


def points_of(run: Run, progress: Progress) -> list[dict[str, Any]]:
    """Return the points of `run`, see `qtool.analyses.pareto.analyse`.

    Raises:
        UserError: no bits or no accuracy yet; a damaged file.
    """
    path = run.path("pareto.json")
    if path.exists():
        return _given_points(run.folder, read_json(path, "points file"), path)
    bits = run.load_bits()
    if bits is None:
        raise UserError(
            f"run {run.folder} has neither pareto.json nor bits.json, so no BOPs: choose its "
            f"bits first (qtool search {run.folder} --bops BUDGET)"
        )
    try:
        bops, layers = int(bits["bops"]), bits["layers"].values()
        widths = [sorted({int(pair[i]) for pair in layers}, reverse=True) for i in (0, 1)]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{run.path('bits.json')} is damaged: {error!r}") from None
    accuracy, source = _accuracy(run, bops, progress)
    return [
        {
            "run": str(run.folder), "bops": bops,
            "budget_bops": float(bits.get("budget_bops") or bops), "accuracy": accuracy,
            "deployed": source == "check.json", "method": _method(run, bits),
            "weights": widths[0], "activations": widths[1], "source": source,
        }
    ]  # fmt: skip


def _given_points(folder: Path, content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Return the points of a pareto.json; their runs are relative to `folder`."""
    check_format(content, PARETO_FORMAT, f"points file {path}")
    try:
        return [
            {
                "run": str(folder / str(point["run"])), "bops": int(point["bops"]),
                "budget_bops": float(point.get("budget_bops") or point["bops"]),
                "accuracy": float(point["accuracy"]), "deployed": bool(point["deployed"]),
                "method": str(point["method"]),
                "weights": [int(b) for b in point["weights"]],
                "activations": [int(b) for b in point["activations"]],
                "source": path.name,
            }
            for point in content["points"]
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"points file {path} is damaged: {error!r}") from None


def _accuracy(run: Run, bops: int, progress: Progress) -> tuple[float, str]:
    """Return top-1 in percent and the file that says so."""
    deployed = _deployed_accuracy(run, bops, progress)
    if deployed is not None:
        return deployed, "check.json"
    found = [
        float(line["test_accuracy"])
        for line in run.metrics()
        if "test_accuracy" in line and line.get("phase") != "float"
    ]
    if not found:
        raise UserError(
            f"run {run.folder}: no accuracy of the quantized network in check.json or "
            f"metrics.jsonl: fine-tune it, or export it and run qtool check ... --json "
            f"{run.path('check.json')}"
        )
    return found[-1], "metrics.jsonl"


def _deployed_accuracy(run: Run, bops: int, progress: Progress) -> float | None:
    """Return the integer model's accuracy, None where no check of these bits is known."""
    path = run.path("check.json")
    if not path.exists():
        return None
    content = read_json(path, "check's report")
    other: list[int] = []
    for report in content.get("models", [content]):
        if report.get("bops") != bops:
            other.append(report.get("bops"))
            continue
        for name in _EXACT:
            if name in report.get("accuracy", {}):
                return float(report["accuracy"][name])
    why = f"of {other[0]} BOPs, the run has {bops}" if other else "without accuracy"
    progress.note(f"{path} is {why}: the fake-quantized accuracy is taken")
    return None


def _method(run: Run, bits: dict[str, Any]) -> str:
    """Return how bits were chosen: what bits.json says, else what the recipe says."""
    config = run.config
    if isinstance(config, QatConfig):
        return "uniform" if parse_uniform(config.bits) else "given bits"
    return str(bits.get("method") or config.frontend)


def float_accuracy(run: Run) -> float | None:
    """Return the float network's test accuracy in percent, None where it is not known."""
    found = [line["test_accuracy"] for line in run.metrics("float") if "test_accuracy" in line]
    return float(found[-1]) if found else None
