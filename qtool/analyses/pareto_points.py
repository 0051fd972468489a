"""What a run directory says of its accuracy at its BOPs: one point, or one of every sub-run.

pareto.json   of a search under several budgets (also in the folder pareto), or hand-written:
              {"format": 1, "points": [{"run", "bops", "budget_bops", "accuracy",
              "deployed", "method", "weights", "activations"}, ...]}
bits.json     otherwise: BOPs and bits
check.json    `qtool check --json`: accuracy of the integer model, if its BOPs are the same
metrics.jsonl otherwise: the newest test accuracy, of the fake-quantized network
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtool.core.errors import UserError
from qtool.core.files import read_json
from qtool.core.progress import Progress
from qtool.core.selection import check_format, parse_uniform
from qtool.runs.run import Run
from qtool.search import PARETO_FORMAT
from qtool.settings.qat import QatConfig
from runtimes.registry import EXACT

_DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError)
_CHECK = "check.json"


def points_of(run: Run, progress: Progress) -> list[dict[str, Any]]:
    """Return the points of `run`, see `qtool.analyses.pareto.analyse`.

    Raises:
        UserError: no bits or no accuracy yet; a damaged file.
    """
    own, below = run.path("pareto.json"), run.path("pareto") / "pareto.json"
    if own.exists():
        return _given_points(own, progress)
    bits = run.load_bits()
    if bits is not None:
        return [_run_point(run, bits, progress)]
    if below.exists():
        return _given_points(below, progress)
    raise UserError(
        f"run {run.folder} has neither pareto.json nor bits.json, so no BOPs: choose its bits "
        f"first (qtool search {run.folder} --bops BUDGET)"
    )


def _run_point(run: Run, bits: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Return the point that `run` is at the bits of its bits.json."""
    path = run.path("bits.json")
    try:
        bops, widths, budget = int(bits["bops"]), _widths(bits), bits.get("budget_bops")
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged: {error!r}") from None
    deployed = _deployed_accuracy(run.path(_CHECK), bops, progress)
    return {
        "run": str(run.folder), "bops": bops, "budget_bops": budget,
        "accuracy": _trained_accuracy(run) if deployed is None else deployed,
        "deployed": deployed is not None, "method": _method(run, bits), **widths,
        "source": "metrics.jsonl" if deployed is None else _CHECK,
    }  # fmt: skip


def _widths(bits: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the weight and activation bit-widths in a bits.json."""
    pairs = list(bits["layers"].values())
    return {
        what: sorted({int(pair[index]) for pair in pairs}, reverse=True)
        for index, what in enumerate(("weights", "activations"))
    }


def _given_points(path: Path, progress: Progress) -> list[dict[str, Any]]:
    """Return the points of a pareto.json."""
    content = read_json(path, "points file")
    check_format(content, PARETO_FORMAT, f"points file {path}")
    try:
        points = [_given_point(path, given, progress) for given in content["points"]]
    except _DAMAGE as error:
        raise UserError(f"points file {path} is damaged: {error!r}") from None
    known = [point for point in points if point["accuracy"] is not None]
    if len(known) < len(points):
        progress.note(f"{path}: {len(points) - len(known)} points have no accuracy yet")
    if not known:
        raise UserError(f"points file {path}: no point has an accuracy: fine-tune the runs")
    return known


def _given_point(path: Path, given: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Return one of them; of its own run comes what it does not say."""
    folder, bops = path.parent / str(given["run"]), int(given["bops"])
    accuracy, deployed = given["accuracy"], bool(given["deployed"])
    checked = None if deployed else _deployed_accuracy(folder / _CHECK, bops, progress)
    widths = {key: [int(b) for b in given[key]] for key in ("weights", "activations")
              if key in given}  # fmt: skip
    if len(widths) < 2:
        widths = _widths(read_json(folder / "bits.json", "bits file"))
    if checked is not None:
        accuracy = checked
    return {
        "run": str(folder), "bops": bops, "budget_bops": given.get("budget_bops"),
        "accuracy": None if accuracy is None else float(accuracy),
        "deployed": deployed or checked is not None, "method": str(given["method"]), **widths,
        "source": path.name if checked is None else _CHECK,
    }  # fmt: skip


def _trained_accuracy(run: Run) -> float:
    """Return the newest test accuracy of the quantized network, in percent."""
    found = [
        float(line["test_accuracy"])
        for line in run.metrics()
        if "test_accuracy" in line and line.get("phase") != "float"
    ]
    if not found:
        raise UserError(
            f"run {run.folder}: no accuracy of the quantized network in {_CHECK} or "
            f"metrics.jsonl: fine-tune it, or export it and run qtool check ... --json "
            f"{run.path(_CHECK)}"
        )
    return found[-1]


def _deployed_accuracy(path: Path, bops: int, progress: Progress) -> float | None:
    """Return the integer model's accuracy, None where no check of these BOPs is known."""
    if not path.exists():
        return None
    content = read_json(path, "check's report")
    try:
        for report in content.get("models", [content]):
            known = report["accuracy"] if report["bops"] == bops else {}
            for name in (name for name in EXACT if name in known):
                return float(known[name])
    except _DAMAGE as error:
        raise UserError(f"check's report {path} is damaged: {error!r}") from None
    progress.note(f"{path} has no accuracy at {bops} BOPs: the fake-quantized one is taken")
    return None


def _method(run: Run, bits: Mapping[str, Any]) -> str:
    """Return how bits were chosen: what bits.json says, else what the recipe says."""
    config = run.config
    if isinstance(config, QatConfig):
        return "uniform" if parse_uniform(config.bits) else "given bits"
    return str(bits.get("method") or config.frontend)


def float_accuracy(run: Run) -> float | None:
    """Return the float network's test accuracy in percent, None where it is not known.

    The run that a folder of sub-runs lies in has the same float network.
    """
    for folder in (run.folder, run.folder.resolve().parent):
        lines = replace(run, folder=folder).metrics("float")
        found = [line["test_accuracy"] for line in lines if "test_accuracy" in line]
        if found:
            return float(found[-1])
    return None
