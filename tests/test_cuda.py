"""Libraries for NVIDIA GPUs, made without one: what NVRTC compiles, and refusals."""

import json
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from conftest import run_qtool
from fuzz_check import lowered
from gpu_kernels import needs_nvrtc
from programs import Net, mobilenet_v2
from test_cli_errors import refused
from test_completeness import everything
from test_gpu_kernels import resnet18

from passes.emit.tvm.cuda import nvrtc
from passes.emit.tvm.cuda.compile import compile_for_gpu
from passes.emit.tvm.cuda.gpu_target import gpu_target
from passes.emit.tvm.cuda.library import CudaLibrary, compiled_imports
from passes.emit.tvm.target import TvmTarget
from qtool.core.dialect import Program, read_program
from qtool.core.errors import UserError
from qtool.core.sealed import read_seal
from runtimes.host_gpu import refuse_foreign_gpu
from runtimes.tvm import TvmRuntime

ARCHS = ("sm_75", "sm_80", "sm_90")
INSTRUCTION = {
    "mma": "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32",
    "dp4a": "dp4a.u32.s32",
}


@pytest.fixture(autouse=True)
def _nvrtc(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        needs_nvrtc()


def compiled(program: Program, arch: str, batch: int = 1) -> CudaLibrary:
    """Return a library; fail unless its kernels multiply as `arch` does best."""
    target = gpu_target(arch)
    made, library = compile_for_gpu(program, target, batch)
    isa = target.to_json()["isa"]
    assert isa == ("dp4a" if arch == "sm_75" else "mma")
    assert f"qtool_{isa}(" in library.source
    assert INSTRUCTION[isa] in library.code.ptx
    assert f".target {arch}" in library.code.ptx
    # An ELF file, of NVIDIA's machine.
    assert library.code.cubin[:4] == b"\x7fELF" and library.code.cubin[18:20] == b"\xbe\x00"
    assert library.code.cubin in made.data and library.source.encode() not in made.data
    kernels = {k["function"] for k in made.facts["module"]["kernels"]}
    for name in kernels:
        assert (
            f"{name}_kernel(" in library.source
            and f".entry {name}_kernel(" in library.code.ptx
        )
    return library


def body(library: CudaLibrary, name: str) -> str:
    """Return the source of the first kernel whose name has `name` in it."""
    found = re.search(rf"void __launch_bounds__\(\d+\) k\d+_{name}\w*\([^;]*?\{{.*?\n\}}",
                      library.source, re.S)  # fmt: skip
    assert found is not None
    return found[0]


# What is compiled


def test_every_operator_is_compiled() -> None:
    compiled(everything(), "sm_80", batch=3)


@pytest.mark.nightly
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("net", [resnet18, mobilenet_v2])
def test_whole_networks_are_compiled(net: Any, arch: str) -> None:
    for batch in (1, 32):
        compiled(net(224).program(), arch, batch)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(4000, 4010))
def test_random_networks_are_compiled(seed: int) -> None:
    program = read_program(lowered(seed)[0])
    for arch in ("sm_75", "sm_90"):
        target = gpu_target(arch)
        assert compile_for_gpu(program, target, 1 + seed % 3)[1].code.cubin


@pytest.mark.nightly
def test_every_architecture_of_nvrtc() -> None:
    for arch in nvrtc.architectures():
        compiled(everything(), arch)


def test_floats_are_rounded_as_the_reference_does() -> None:
    net = Net((32, 6, 6), raw=False)
    net.mul(net.conv(net.input, 32), net.input)
    ptx = compiled(net.program(), "sm_80").code.ptx
    # A product and a sum stay two roundings, divisions are IEEE's, small numbers stay.
    assert "fma.rn.f32" not in ptx and "mul.f32" in ptx.replace(".rn", "")
    assert "div.rn.f32" in ptx and "cvt.rni.f32.f32" in ptx
    assert not re.search(r"\.ftz|\.approx|div\.full", ptx)


def test_an_addition_is_fused_where_it_is_asked_for() -> None:
    net = Net((32, 6, 6))
    net.add(net.conv("x", 32), net.conv("x", 32, 1))
    ptx = compiled(net.program(), "sm_80").code.ptx
    assert "fma.rn.f32" in ptx


def test_there_is_a_barrier_on_either_side_of_shared_memory() -> None:
    net = Net((64, 8, 8))
    net.conv("x", 64)
    for arch in ("sm_75", "sm_80"):
        source = body(compiled(net.program(), arch), "gemm3x3")
        steps = source[source.index("for (int v = 0; v < 9; ++v)") :]
        first, second = [m.start() for m in re.finditer("__syncthreads", steps)]
        stores = [m.start() for m in re.finditer(r"\*\(uint4\*\)\(\w+ \+ [^=]*\) = ", steps)]
        assert stores and all(first < place < second for place in stores)
        assert second < steps.index("qtool_") and source.count("__syncthreads") == 2


def test_source_that_nvrtc_refuses_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"NVRTC: kernels.cu\(1\): error"):
        nvrtc.compile_source("__global__ void f() { this is wrong }", "sm_80")


# The library


def test_tvm_unpacks_what_was_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if tvm.cuda().exist:
        pytest.skip("TVM has its own loader here")
    library = compiled(everything(), "sm_90")
    path, got = tmp_path / "model.so", list[bytes]()
    path.write_bytes(library.data)

    def load(content: bytes) -> None:
        got.append(bytes(content))
        raise RuntimeError("there is no GPU")

    tvm_ffi.register_global_func("ffi.Module.load_from_bytes.cuda", load)
    try:
        with pytest.raises(RuntimeError, match="there is no GPU"):
            tvm.runtime.load_module(str(path))
    finally:
        tvm_ffi.registry.remove_global_func("ffi.Module.load_from_bytes.cuda")
    (content,) = got
    end = (len(library.code.cubin)).to_bytes(8, "little") + library.code.cubin
    assert content.startswith(b"\x05" + b"\0" * 7 + b"cubin") and content.endswith(end)
    assert b"blockIdx.x" in content and b"plain_quantize_kernel" in content


def test_bytes_of_another_layout_are_not_rewritten() -> None:
    for packed in (b"", b"\0" * 8 + b"\x04" + b"\0" * 7 + b"cuda", b"\0" * 100):
        with pytest.raises(ValueError, match="TVM packs device modules in another way"):
            compiled_imports(packed, b"source", b"cubin")


def test_an_export_and_what_it_says(tiny: Path, tmp_path: Path) -> None:
    path, script = tmp_path / "m.so", tmp_path / "m.py"
    options = ("--device", "cuda", "--arch", "sm_80", "--batch", 8, "--emit-ir", script)
    done = run_qtool("import", tiny / "tiny.onnx", "-o", path, *options)
    assert done.code == 0, done.err
    assert "writing CUDA for sm_80" in done.err and "kernels with NVRTC" in done.err
    content, sealed = json.loads((tmp_path / "m.json").read_text()), read_seal(path)
    assert content["target"] == sealed["device"] == {
        "triple": "nvptx64-nvidia-cuda", "mcpu": "sm_80", "isa": "mma", "features": [],
    }  # fmt: skip
    assert content["input"]["shape"] == [8, 2, 5, 5] and sealed["batch"] == 8
    assert content["peak_activation_bytes"] == sealed["module"]["arena_bytes"] > 0
    assert sealed["digest"] == read_seal(tiny / "model.so")["digest"]
    text = script.read_text()
    assert text.splitlines()[0].endswith("sm_80 (mma), nvptx64-nvidia-cuda")
    assert 'thread="blockIdx.x"' in text and "mma.sync" in text
    if not tvm.cuda().exist:
        said = (
            "m.so: compiled for an NVIDIA GPU (sm_80), and TVM finds none here",
            "--target",
        )
        refused(run_qtool("check", path), *said)
        refused(run_qtool("check", tiny / "model.onnx", path), *said)


def test_activations_share_memory() -> None:
    net = Net((16, 16, 16))
    x = "x"
    for _ in range(6):
        x = net.conv(x, 16)
    library = compiled(net.program(), "sm_80", batch=2)
    bytes_of_one = 2 * 16 * 16 * 16
    assert library.arena_bytes < 4 * bytes_of_one


# Refusals


@pytest.mark.parametrize(
    "given, said",
    [
        ((), ("--device cuda needs --arch, one of", "sm_80", "sm_90", "got none")),
        (("--arch", "sm_70"), ("one of sm_75, sm_80", "got 'sm_70'")),
        (("--arch", "sm_80", "--mcpu", "haswell"), ("--mcpu is for a CPU",)),
        (("--arch", "sm_80", "--tune", 3), ("--tune is for a CPU", "leave it out")),
        (("--arch", "sm_80", "--tune-cache", "c"), ("--tune-cache is for a CPU",)),
        (("--arch", "sm_80", "--batch", 0), ("--batch", "0")),
    ],
)
def test_options_that_do_not_fit(
    given: tuple[Any, ...], said: tuple[str, ...], tiny: Path, tmp_path: Path
) -> None:
    base = ("import", tiny / "tiny.onnx", "-o", tmp_path / "m.so", "--device", "cuda")
    refused(run_qtool(*base, *given), *said)
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_gpu_without_one(tiny: Path, tmp_path: Path) -> None:
    base = ("import", tiny / "tiny.onnx", "-o", tmp_path / "m.so")
    refused(run_qtool(*base, "--arch", "sm_80"), "--arch is read with --device cuda only")
    refused(run_qtool(*base, "--batch", 2), "--batch is read with --device cuda only")
    refused(run_qtool(*base, "--device", "gpu"), "'gpu' is not one of 'cpu', 'cuda'")
    gpu = ("--device", "cuda", "--arch", "sm_80")
    refused(run_qtool(*base[:3], tmp_path / "m.tar", *gpu), "shared library (.so)", "got .tar")
    with pytest.raises(UserError, match="one pair of bit-widths, got 2: export each"):
        TvmTarget(device="cuda", arch="sm_80").pair_files(["w4a4", "w8a8"], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_library() -> Any:
    """Forget the loaded library, before and after."""
    caches = (nvrtc._library, nvrtc.architectures)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.usefixtures("no_library")
def test_an_export_without_nvrtc(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.distribution

    def distribution_of(answer: Any) -> Any:
        return lambda name: answer() if name == nvrtc.PACKAGE else real(name)

    def absent() -> Any:
        raise metadata.PackageNotFoundError

    gpu = ("--device", "cuda", "--arch", "sm_80")
    command = ("import", tiny / "tiny.onnx", "-o", tmp_path / "m.so", *gpu)
    install = "pip install 'nvidia-cuda-nvrtc==13.*' (extra: cuda)"
    for answer, said in (
        (absent, "nvidia-cuda-nvrtc 13, not installed"),
        (lambda: SimpleNamespace(version="12.9.86", files=[]), "13, got 12.9.86"),
        (lambda: SimpleNamespace(version="13.5.37", files=[]), "cannot be loaded"),
    ):
        monkeypatch.setattr("importlib.metadata.distribution", distribution_of(answer))
        refused(run_qtool(*command), said, install)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arch, gpu, said",
    [
        ("sm_80", None, "TVM finds none here"),
        (
            "sm_80",
            "9.0",
            "compiled for sm_80, and this machine's GPU is sm_90; export it with",
        ),
        ("sm_90", "8.0", "compiled for sm_90, and this machine's GPU is sm_80"),
        ("sm_86", "8.0", "--device cuda --arch sm_80"),
        ("sm_100", "12.0", "--arch sm_120"),
        ("sm_80", "8.0", ""),
        ("sm_80", "8.6", ""),
        ("haswell", "8.0", "does not say what GPU"),
    ],
)
def test_a_gpu_that_cannot_run_it_without_loading(
    arch: str, gpu: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(exist=gpu is not None, compute_version=gpu)
    monkeypatch.setattr(tvm, "cuda", lambda: found)
    if not said:
        refuse_foreign_gpu(Path("m.so"), {"mcpu": arch})
        return
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        refuse_foreign_gpu(Path("m.so"), {"mcpu": arch})
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model m.so: ")


def test_a_batch_is_filled_without_a_gpu() -> None:
    runtime = object.__new__(TvmRuntime)
    facts = {
        "batch": 4,
        "input_shape": [2],
        "input_kind": "float32",
        "device": {"mcpu": "sm_80"},
    }
    runtime.metadata = facts
    parts = runtime._parts(np.arange(12, dtype=np.float32).reshape(6, 2))
    assert [part[:, 0].tolist() for part in parts] == [[0, 2, 4, 6], [8, 10, 10, 10]]
    with pytest.raises(UserError, match="batches of 4, got 0 images"):
        runtime._parts(np.zeros((0, 2), np.float32))
