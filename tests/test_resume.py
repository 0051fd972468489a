"""A run killed at any moment continues, and ends in the same weights as one that was not.

Killed here as a process; `test_runs` interrupts at every kind of step without starting one.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, run_qtool

KILLS = Path(__file__).parent.parent / "benchmarks" / "resume_kills.py"
TRAIN = ("train", "metamix_fashion", "--epochs", "1", *TINY)
SEARCH = ("search", "--bops", "48M")


def kill_when(file: Path, *args: object) -> None:
    """Start `qtool args`; SIGKILL it as soon as `file` is there."""
    command = [sys.executable, "-m", "qtool", *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not file.exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -9, errors.decode()


@pytest.mark.nightly
def test_kills_of_both_commands_change_nothing(searched_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kill_when(out / "float.safetensors", *TRAIN, "--out", out)
    assert not (out / "model.safetensors").exists()
    done = run_qtool(*TRAIN, "--out", out, "--resume")
    assert done.code == 0, done.err
    kill_when(out / "bits.json", *SEARCH, out)
    done = run_qtool(*SEARCH, out, "--resume")
    assert done.code == 0, done.err
    for name in ("float.safetensors", "model.safetensors", "metrics.jsonl", "bits.json"):
        assert (out / name).read_bytes() == (searched_run / name).read_bytes(), name


@pytest.mark.nightly
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(KILLS), "--kills", "6", "--out", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 runs equal the uninterrupted one" in done.stdout
