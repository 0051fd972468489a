"""The Triton kernels as code for GPUs, compiled without one: which instructions they have."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import resnet

from qtool.core.errors import UserError

pytest.importorskip("triton", reason="Triton is not installed: extra gpu")

from runtimes.triton.compiled import compile_kernels
from runtimes.triton.device import INTERPRET

Kernels = list[dict[str, Any]]
# The int8 matrix instructions of Ampere, and what those of Hopper begin with.
AMPERE = "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"
HOPPER = "wgmma.mma_async.sync.aligned.m64n"
# Products and sums, each rounded by itself.
PLAIN = {"add.rn.f32", "mul.rn.f32"}
FLOATS: dict[str, set[str]] = {
    "contract": PLAIN, "depthwise": PLAIN, "average": PLAIN, "multiply": PLAIN,
    "dequantize": {"mul.rn.f32"}, "quantize": {"add.rn.f32", "div.rn.f32"},
    "add": {"add.rn.f32", "fma.rn.f32"}, "copy": set(), "fill": set(), "max_pool": set(),
    "look_up": set(), "shift_pixels": set(),
}  # fmt: skip


def compiled(folder: Path, *networks: str) -> list[Kernels]:
    """Return what `triton_code` says of every network."""
    script = Path(__file__).parent / "triton_code.py"
    variables = {k: v for k, v in os.environ.items() if k != INTERPRET}
    done = subprocess.run(
        [sys.executable, script, *networks], capture_output=True, text=True,
        env=variables | {"TRITON_CACHE_DIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[Kernels] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernels]:
    """Kernels by what they are: compiled in one process, which is what takes the time."""
    networks = {
        "every": "everything:6:1:80", "ampere": "layers:16:32:80", "hopper": "layers:16:32:90",
        "gate": "gate:8:1:80", "fused": "gate:8:1:80:fused",
    }  # fmt: skip
    found = compiled(tmp_path_factory.mktemp("triton"), *networks.values())
    return dict(zip(networks, found, strict=True))


def wrong_floats(kernels: Kernels) -> list[str]:
    """Say which kernels have other floating-point instructions than theirs."""
    return [
        f"{each['kernel']}: {each['floats']}"
        for each in kernels
        if not FLOATS[each["kernel"]] >= {*each["floats"]} >= FLOATS[each["kernel"]] - PLAIN
    ]


def products(kernels: Kernels) -> set[str]:
    """Return the matrix instructions, of which every contraction has some, and no other."""
    for each in kernels:
        assert bool(each["matrix"]) == (each["kernel"] == "contract"), each
    whole = {m for each in kernels for m in each["matrix"]}
    return {m for m in whole if m == AMPERE or m.startswith(HOPPER)}


def test_every_kernel_compiles(code: dict[str, Kernels]) -> None:
    kernels = code["every"] + code["ampere"] + code["gate"]
    assert {each["kernel"] for each in kernels} == {*FLOATS}
    assert all(each["bytes"] > 1000 for kernels in code.values() for each in kernels)


def test_products_are_on_tensor_cores(code: dict[str, Kernels]) -> None:
    assert products(code["every"]) == products(code["ampere"]) == {AMPERE}
    wide = products(code["hopper"]) - {AMPERE}
    assert wide and all(m.endswith("k32.s32.s8.s8") for m in wide)


def test_floats_are_rounded_as_in_the_reference(code: dict[str, Kernels]) -> None:
    for name in ("every", "ampere", "hopper", "gate"):
        assert wrong_floats(code[name]) == []
    # What Triton makes of a product and a sum unless it is told.
    assert "multiply: ['add.f32', 'fma.rn.f32']" in wrong_floats(code["fused"])


@pytest.mark.nightly
@pytest.mark.parametrize("network", ["resnet", "mobilenet"])
@pytest.mark.parametrize("arch", [80, 90])
def test_networks_are_integer_code(arch: int, network: str, tmp_path: Path) -> None:
    """ResNet-18 and MobileNet-v2 as their layers are launched on 132 multiprocessors."""
    asked = [f"{network}:224:{batch}:{arch}" for batch in (1, 32, 256)]
    for kernels in compiled(tmp_path, *asked):
        assert wrong_floats(kernels) == []
        found = products(kernels)
        assert found == {AMPERE} if arch == 80 else found - {AMPERE}
        assert sum(len(each["layers"]) for each in kernels) > 30


def test_interpreted_kernels_are_not_compiled() -> None:
    program = resnet((8,), 16).program()
    with pytest.raises(UserError, match="without TRITON_INTERPRET in the environment"):
        next(iter(compile_kernels(program, 1, 80, 132)))
