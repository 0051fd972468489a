"""Jobs of two processes on gloo: the same result as one, a clear end when one is killed."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, run_qtool
from safetensors.torch import load_file
from torch import Tensor, nn

from qtool.nn.modules import sync_norm
from qtool.nn.modules.sync_norm import SyncBatchNorm
from qtool.parallel import job
from qtool.parallel.job import Job

HERE = Path(__file__).parent
TRAIN = (
    "train", "metamix_fashion", "--epochs", "2", *TINY, "--model", "tiny_training:plain_net",
    "--set", "checkpoint_steps=1",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def start_job(size: int, *args: object) -> list[subprocess.Popen[str]]:
    """Start `qtool args` in `size` processes, with the environment that torchrun makes."""
    port, processes = str(free_port()), []
    for rank in range(size):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "qtool", *map(str, args)],
                env={**os.environ, **place, **address, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    results = [process.communicate() for process in processes]
    codes = [process.returncode for process in processes]
    return [(code, *texts) for code, texts in zip(codes, results, strict=True)]


def distance(first: Path, second: Path) -> float:
    """Return the largest difference between two files' tensors, relative to each tensor."""
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    return max(
        float(
            (a[n].double() - b[n].double()).abs().max() / b[n].double().abs().max().clamp(1e-3)
        )
        for n in a
    )


@pytest.mark.nightly
def test_two_processes_killed_and_resumed_do_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    out, alone = tmp_path / "run", tmp_path / "alone"
    whole = run_qtool(*TRAIN, "--out", alone)
    assert whole.code == 0, whole.err
    processes = start_job(2, *TRAIN, "--out", out)
    while not (out / "checkpoint.safetensors").exists() and processes[1].poll() is None:
        time.sleep(0.001)
    processes[1].kill()
    (code, _, errors), (killed, _, _) = finish(processes)
    assert (code, killed) == (2, -9), errors
    (line,) = [text for text in errors.splitlines() if "qtool: error" in text]
    assert "process 0 of 2: another process of the job ended" in line and "--resume" in line
    assert "Traceback" not in errors and not (out / "model.safetensors").exists()
    first, second = finish(start_job(2, *TRAIN, "--out", out, "--resume"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "trained metamix_fashion" in first[1] and second[1:] == ("", "")
    # Sums of halves are rounded otherwise than those of whole batches; where that takes a
    # value across the kink of a ReLU, or to another code, gradients differ by its share.
    assert distance(out / "float.safetensors", alone / "float.safetensors") < 1e-3
    assert distance(out / "model.safetensors", alone / "model.safetensors") < 1e-2


def test_a_batch_has_to_divide_among_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_joined", [Job(0, 2)])
    parts = ("--set", "batch_size=66", "--set", "accumulate=4", "--out", tmp_path / "run")
    result = run_qtool("train", "metamix_fashion", *parts)
    assert result.code == 2 and result.err.strip().splitlines() == [
        "qtool: error: recipe setting batch_size: got 66, expected a multiple of 8: 2 "
        "processes times accumulate=4"
    ]
    assert not (tmp_path / "run").exists()


def test_mistakes_that_all_processes_see_are_printed_by_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        result = run_qtool("train", "metamix_fashoin", "--out", tmp_path)
        assert result.code == 2 and len(result.err.splitlines()) == lines


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 3)])
def test_synchronised_norm_is_the_norm_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], momentum: float | None
) -> None:
    # Two processes with equal images: every sum over them is twice one's own.
    monkeypatch.setattr(sync_norm, "current", lambda: Job(0, 2))
    monkeypatch.setattr(sync_norm, "all_reduce_sum", lambda tensor: 2 * tensor)
    torch.manual_seed(0)
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    plain, copied = (kind(3, momentum=momentum).double() for _ in range(2))
    for norm in (plain, copied):
        norm.weight.data.copy_(torch.tensor([0.5, -1.0, 2.0]))
    synced = SyncBatchNorm(copied)
    x, upstream = (torch.randn(shape, dtype=torch.float64) * 3 + 1 for _ in range(2))

    def gradients(norm: nn.Module, inputs: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        leaf = inputs.clone().requires_grad_()
        y = norm(leaf)
        (y * weights).sum().backward()
        assert leaf.grad is not None
        return y, leaf.grad

    for _ in range(2):
        y, grad = gradients(synced, x, upstream)
        whole = gradients(plain, torch.cat([x, x]), torch.cat([upstream, upstream]))
        torch.testing.assert_close((y, grad), tuple(part[:4] for part in whole))
    torch.testing.assert_close(dict(synced.state_dict()), dict(plain.state_dict()))
    # Each process has the gradient of its own images: half of the whole batch's.
    torch.testing.assert_close(2 * copied.weight.grad, plain.weight.grad)
    torch.testing.assert_close(synced.eval()(x), plain.eval()(x))


@pytest.mark.nightly
def test_torchrun_reaches_the_accuracy_of_one_process(tmp_path: Path) -> None:
    small = [part for s in ("train_images=4096", "float_epochs=3") for part in ("--set", s)]
    accuracies = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        launch = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
        ]
        command = [sys.executable, *launch, "-m", "qtool", "train", "metamix_fashion", *small]
        done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (line,) = [s for s in done.stderr.splitlines() if s.startswith("float: test accuracy")]
        accuracies.append(float(line.split()[3]))
    assert abs(accuracies[0] - accuracies[1]) < 2.5 and min(accuracies) > 70
    exported = run_qtool("export", out, "--target", "onnx", "-o", tmp_path / "model.onnx")
    assert exported.code == 0, exported.err
