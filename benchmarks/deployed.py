"""Export a run and check the file: what the tables of trained networks have in common."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qtool.core.files import read_json

_PACKAGES = ("torch", "onnxruntime", "numpy")


def measure(run: Path, source: Sequence[str], runtime: str, threads: int) -> dict[str, Any]:
    """Export and check; return what a row says of it.

    Args:
        run: run directory; model.onnx and check.json are written into it.
        source: the option --data with its value, or nothing.
        runtime: value of `qtool check --runtime`.
        threads: of torch.
    """
    model, report = run / "model.onnx", run / "check.json"
    qtool(threads, "export", run, "--target", "onnx", "-o", model, "--force")
    qtool(
        threads, "check", model, *source, "--reference", run, "--runtime", runtime,
        "--json", report, "--force",
    )  # fmt: skip
    found, recipe = read_json(report, "report"), read_json(run / "recipe.json", "recipe")
    keys = ("model", "dataset", "quantizer", "epochs", "lr", "seed", "distill_weight")
    return {
        **{key: recipe["recipe"][key] for key in keys if key in recipe["recipe"]},
        **{key: found[key] for key in ("images", "accuracy", "bops", "file_bytes")},
        "parity": found["parity"].get("ort"),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def qtool(threads: int, *words: object) -> None:
    """Run a command of qtool; stop with its exit code where it fails."""
    command = [sys.executable, "-m", "qtool", *map(str, words)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if done.returncode != 0:
        raise SystemExit(done.returncode)


def differing(parity: dict[str, Any] | None) -> str:
    """Return ``0 of 1,234`` integers."""
    return f"{parity['mismatched']:,} of {parity['compared']:,}" if parity else ""


def train(
    run: Path, recipe: str, source: Sequence[str], settings: Sequence[str], threads: int
) -> None:
    """Train `run` by `recipe` with `settings`, KEY=VALUE; go on where it was interrupted."""
    if (run / "model.safetensors").exists():
        return
    more = ("--resume",) if (run / "recipe.json").exists() else ()
    chosen = (word for each in settings for word in ("--set", each))
    qtool(threads, "train", recipe, "--out", run, *source, *chosen, *more)
