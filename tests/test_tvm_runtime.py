"""TVM modules as callers use them: batches, wrong images, several at once, threads."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import Net, mobilenet_v2, resnet

from passes.emit.tvm.compile import Compiled, compile_program
from passes.emit.tvm.cpu.plan import context, convolution
from qtool.core.errors import UserError
from runtimes.reference import ReferenceRuntime
from runtimes.tvm import TvmRuntime


def small(seed: int = 0) -> Net:
    net = Net((3, 6, 5), raw=False, seed=seed)
    net.gemm(net.flatten(net.average(net.conv(net.input, 9))), 4)
    return net


def compiled(net: Net, path: Path, batch: int = 1) -> Compiled:
    made = compile_program(net.program(), batch=batch)
    path.write_bytes(made.data)
    return made


def test_batches_and_what_does_not_fit(tmp_path: Path) -> None:
    net = small()
    compiled(net, tmp_path / "m.so", batch=4)
    runtime, x = TvmRuntime(tmp_path / "m.so"), net.images(8)
    reference = ReferenceRuntime(net.program())
    assert np.array_equal(runtime.run(x), reference.run(x))
    for name, codes in reference.intermediates(x).items():
        assert np.array_equal(runtime.intermediates(x)[name], codes)
    wrong: dict[str, Any] = {
        "batches of 4, got 6 images": x[:6],
        "batches of 4, got 0 images": x[:0],
        "images of 3x6x5 float32, got 3x5x6 float32": x.transpose(0, 1, 3, 2),
        "images of 3x6x5 float32, got 3x6x5 uint8": x.astype(np.uint8),
        "images of 3x6x5 float32, got 6x5 float32": x[:, 0],
    }
    for said, images in wrong.items():
        for call in (runtime.run, runtime.intermediates):
            with pytest.raises(UserError, match=said) as caught:
                call(images)
            assert "\n" not in str(caught.value)


def test_modules_live_side_by_side(tmp_path: Path) -> None:
    nets = [small(seed) for seed in range(2)]
    for i, net in enumerate(nets):
        compiled(net, tmp_path / f"{i}.so")
    paths = [tmp_path / f"{i}.so" for i in (0, 1, 0)]
    runtimes, x = [TvmRuntime(path) for path in paths], nets[0].images(3)
    for _ in range(2):
        for net, runtime in zip((*nets, nets[0]), runtimes, strict=True):
            assert np.array_equal(runtime.run(x), ReferenceRuntime(net.program()).run(x))


CHILD = """
import os, sys
from pathlib import Path
import numpy as np
from runtimes.tvm import TvmRuntime

wrong = 0
for path in sorted(Path(sys.argv[1]).glob("*.so")):
    known, runtime = dict(np.load(path.with_suffix(".npz"))), TvmRuntime(path)
    for _ in range(5):
        wrong += int((runtime.run(known["x"]) != known["logits"]).sum())
        found = runtime.intermediates(known["x"])
        wrong += sum(int((found[name] != known[name]).sum()) for name in found)
sys.stdout.write(f"{wrong} {len(os.listdir('/proc/self/task'))}")
"""


def busy() -> Net:
    """What the networks do not have: every kernel that is split over threads."""
    net = Net((16, 9, 9))
    a = net.conv("x", 32, 3, groups=4)
    b = net.lookup(net.conv(a, 32, 1))
    c = net.mul(b, net.conv(net.average(a), 32, 1))
    d = net.pool(net.concat(c, a), 3)
    e = net.conv(net.cut(net.pad(d)), 16, 3, strides=(2, 1), dilations=(2, 2))
    net.mul(
        net.add(net.upsample(e), net.lookup(net.upsample(e))), net.shuffle(net.upsample(e))
    )
    return net


SPLIT = {
    "AddCodes", "CopyInput", "CopyRegion", "DepthwiseConv", "DirectConv", "FillRegion",
    "GlobalAverage", "LookUp", "MaxPool", "MulCodes", "QuantizeInput", "ShuffleChannels",
    "Winograd",
}  # fmt: skip


def is_split(kernel: Any) -> bool:
    """Whether a kernel's work is split over threads."""
    return bool(getattr(getattr(kernel, "operands", kernel), "parallel", False))


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_two_threads_compute_the_same_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "PARALLEL_MACS", 0)
    monkeypatch.setattr(convolution, "PARALLEL_DEPTHWISE_MACS", 0)
    monkeypatch.setattr(context, "PARALLEL_BYTES", 0)
    split = set()
    for index, net in enumerate((resnet((64,), 56), mobilenet_v2(40, 3), busy())):
        kernels = [step.kernel for step in net.plan().steps]
        split |= {type(kernel).__name__ for kernel in kernels if is_split(kernel)}
        compiled(net, tmp_path / f"{index}.so")
        x, reference = net.images(2), ReferenceRuntime(net.program())
        codes = reference.intermediates(x)
        np.savez(tmp_path / f"{index}.npz", logits=reference.run(x), **codes | {"x": x})
    assert split == SPLIT
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path],
        env=os.environ | {"TVM_NUM_THREADS": "2", "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wrong, threads = map(int, done.stdout.split())
    assert wrong == 0 and threads >= 2
