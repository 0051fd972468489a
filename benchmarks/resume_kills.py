"""Kill a run with SIGKILL at random moments; resumed, it must end in the same bytes.

    python benchmarks/resume_kills.py --kills 20 --out DIR [--json FILE] [--set KEY=VALUE ...]

Trains RECIPE once without interruption, then `--kills` times anew, each killed once at a
moment drawn uniformly from the time that training took, and continued with --resume. Compares
model.safetensors and metrics.jsonl byte by byte, and exits with 1 if any differ. Small
settings are built in; `--set` adds to them.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SMALL = ("train_images=512", "batch_size=64", "norm_batches=2", "checkpoint_steps=3")
RESULTS = ("model.safetensors", "metrics.jsonl")


def command(recipe: str, settings: Sequence[str], out: Path) -> list[str]:
    """Return the command that trains, from the start or from where it was killed."""
    options = [part for setting in settings for part in ("--set", setting)]
    base = [sys.executable, "-m", "qtool", "train", recipe]
    return [*base, *options, "--out", str(out), "--resume"]


def run_whole(args: Sequence[str], recipe: Path) -> tuple[float, float]:
    """Run `args` to the end; return the seconds until `recipe` was written, and in all."""
    began, started = time.monotonic(), None
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        if started is None and recipe.exists():
            started = time.monotonic() - began
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.stderr.read().decode() if process.stderr else "")
    total = time.monotonic() - began
    return (total if started is None else started), total


def kill_after(args: Sequence[str], recipe: Path, seconds: float) -> bool:
    """Start `args`, kill it `seconds` after `recipe` exists; False if it had finished."""
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not recipe.exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(seconds)
    was_running = process.poll() is None
    process.kill()
    process.wait()
    return was_running


def state_of(folder: Path) -> str:
    """Return what a killed run had reached."""
    names = ("model", "meta", "float", "checkpoint")
    stage = next((n for n in names if (folder / f"{n}.safetensors").exists()), "nothing")
    leftovers = len(list(folder.glob(".*")))
    return stage + (f", {leftovers} unfinished file" if leftovers else "")


def main() -> None:
    """Print a line a kill, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="metamix_fashion")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    random.seed(options.seed)
    settings = [*SMALL, "float_epochs=3", "meta_epochs=2", *options.settings]
    whole = options.out / "whole"
    start, total = run_whole(command(options.recipe, settings, whole), whole / "recipe.json")
    print(f"uninterrupted: {total:.1f} s, of which {start:.1f} s until it trains")
    rows = []
    for index in range(options.kills):
        folder = options.out / f"killed{index}"
        args, moment = (
            command(options.recipe, settings, folder),
            random.uniform(0, total - start),
        )
        was_running = kill_after(args, folder / "recipe.json", moment)
        reached = state_of(folder)
        run_whole(args, folder / "recipe.json")
        same = {n: (folder / n).read_bytes() == (whole / n).read_bytes() for n in RESULTS}
        rows.append({"seconds": moment, "killed": was_running, "reached": reached, **same})
        print(f"{index + 1:3} killed after {moment:5.1f} s ({reached}): {same}", flush=True)
        shutil.rmtree(folder)
    equal = sum(all(row[name] for name in RESULTS) for row in rows)
    killed = sum(row["killed"] is True for row in rows)
    print(f"{equal} of {len(rows)} runs equal the uninterrupted one; {killed} were killed")
    if options.json is not None:
        options.json.write_text(json.dumps({"seconds": total, "runs": rows}, indent=2) + "\n")
    sys.exit(0 if equal == len(rows) else 1)


if __name__ == "__main__":
    main()
