"""A run killed at any moment continues, and ends in the same weights as one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ARGS = [
    "--set", "train_images=512", "--set", "batch_size=64", "--set", "norm_batches=2",
    "--set", "meta_epochs=2", "--set", "search_epochs=2", "--set", "finetune_epochs=3",
]  # fmt: skip


def commands(out: Path) -> list[list[str]]:
    base = [sys.executable, "-m", "qtool"]
    return [
        [*base, "train", "metamix_fashion", "--epochs", "3", *ARGS, "--out", str(out)],
        [*base, "search", str(out), "--bops", "48M"],
    ]


def finish(command: list[str]) -> None:
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def kill_after(command: list[str], seconds: float) -> None:
    """Start `command --resume`, SIGKILL it after `seconds` unless it has finished."""
    process = subprocess.Popen(
        [*command, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def killed_and_resumed(out: Path, times: int, seed: int) -> bytes:
    random.seed(seed)
    for command in commands(out):
        for _ in range(times):
            kill_after(command, random.uniform(2.5, 9.0))
        finish(command)
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "run"
    for command in commands(out):
        finish(command)
    return (out / "model.safetensors").read_bytes()


def test_two_kills_change_nothing(uninterrupted: bytes, tmp_path: Path) -> None:
    assert killed_and_resumed(tmp_path / "run", times=1, seed=0) == uninterrupted


@pytest.mark.nightly
def test_many_kills_change_nothing(uninterrupted: bytes, tmp_path: Path) -> None:
    for seed in range(5):
        assert killed_and_resumed(tmp_path / f"run{seed}", 2, seed) == uninterrupted
