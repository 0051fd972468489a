"""`--mcpu`: names, features and integer instructions, and code for CPUs that are not here."""

import io
import tarfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_files import qdq
from tvm.target import codegen

from passes.emit.tvm import cpu_target as module
from passes.emit.tvm.cpu.tvm_module import emit_tvm
from passes.emit.tvm.cpu_target import CpuTarget, choose_isa, cpu_target, host_target
from passes.emit.tvm.library import OBJECTS, compile_library, find_linker
from passes.pipelines import import_qdq
from qtool.core.dialect import Program, read_program
from qtool.core.errors import UserError

ELF_MACHINE = {"x86_64": 62, "aarch64": 183}


def tiny_program() -> Program:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(qdq()))
    return read_program(import_qdq(model))


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        cpu_target(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "architecture", "isa", "vbmi"),
    [
        ("znver4", "x86_64", "avx512_vnni", True),
        ("icelake-server", "x86_64", "avx512_vnni", True),
        ("cascadelake", "x86_64", "avx512_vnni", False),
        ("skylake-avx512", "x86_64", "avx2", False),
        ("alderlake", "x86_64", "avx_vnni", False),
        ("haswell", "x86_64", "avx2", False),
        ("x86-64", "x86_64", "generic", False),
        ("cortex-a76", "aarch64", "arm_dotprod", False),
        ("neoverse-n1", "aarch64", "arm_dotprod", False),
        ("cortex-a72", "aarch64", "generic", False),
    ],
)
def test_isa_of_a_named_cpu(name: str, architecture: str, isa: str, vbmi: bool) -> None:
    target = cpu_target(name)
    assert (target.mcpu, target.architecture) == (name, architecture)
    assert (target.isa, target.vbmi, target.masked) == (isa, vbmi, ())


def test_needed_features_are_instructions_and_not_tuning() -> None:
    haswell, plain = cpu_target("haswell"), cpu_target("x86-64")
    assert {"avx2", "fma", "bmi2"} <= set(haswell.features)
    assert not any("avx512" in name or "fast" in name for name in haswell.features)
    assert plain.features == ()
    assert set(haswell.features) < set(cpu_target("znver4").features)
    assert "dotprod" in cpu_target("cortex-a76").features


def test_vnni_needs_the_byte_and_short_vectors_too() -> None:
    assert choose_isa("x86_64", {"avx512vnni", "avx512f", "avx2"}) == ("avx2", False)
    both = {"avx512vnni", "avx512bw", "avx512vl", "avxvnni", "avx2"}
    assert choose_isa("x86_64", both) == ("avx512_vnni", False)


def test_native_is_this_machine() -> None:
    assert cpu_target(None) == cpu_target("native") == host_target()
    assert host_target().mcpu == codegen.llvm_get_system_cpu()
    assert str(host_target().llvm()["mcpu"]) == host_target().mcpu


def test_what_the_machine_masks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine may hide AVX-512: the CPU's name alone would end in SIGILL."""
    hidden = {"avx512vnni": False, "avx512f": False, "fsrm": False}
    monkeypatch.setattr(module.codegen, "llvm_get_system_cpu", lambda: "znver4")
    monkeypatch.setattr(module.codegen, "llvm_get_system_triple", lambda: "x86_64-linux-gnu")
    monkeypatch.setattr(module.tvm, "get_global_func", lambda name: lambda: hidden)
    target = host_target()
    assert target.isa == "avx2" and target.masked == ("avx512f", "avx512vnni")
    assert not {"avx512f", "avx512vnni"} & set(target.features)
    assert list(target.llvm()["mattr"]) == ["-avx512f", "-avx512vnni"]


def test_unknown_cpu_names_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    text = refusal("icelake-serve")
    assert "--mcpu: unknown CPU 'icelake-serve': did you mean icelake-server" in text
    assert "cortex-a76" in refusal("cortexa76")
    far = refusal("?")
    assert "such as znver4, icelake-server" in far and "native is this machine's" in far
    assert capfd.readouterr().err == ""  # LLVM was not asked to compile for it


def test_cpu_without_64_bits() -> None:
    assert "i386 has no 64-bit mode; the oldest with one is x86-64" in refusal("i386")


def test_an_architecture_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.codegen, "llvm_get_system_cpu", lambda: "sifive-u74")
    monkeypatch.setattr(module.codegen, "llvm_get_system_triple", lambda: "riscv64-linux-gnu")
    monkeypatch.setattr(module.tvm, "get_global_func", lambda name: dict)
    assert "is riscv64; TVM modules are made for x86_64 and aarch64" in refusal("native")


def machine_of(data: bytes) -> int:
    """Return the machine in an ELF file's header."""
    assert data[:4] == b"\x7fELF"
    return int(np.frombuffer(data[18:20], "<u2")[0])


@pytest.mark.parametrize("name", ["haswell", "cortex-a76"])
def test_objects_need_no_linker(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    target = cpu_target(name)
    data = compile_library(emit_tvm(tiny_program(), target).ir, target, OBJECTS)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = [archive.extractfile(member) for member in archive.getmembers()]
        contents = [file.read() for file in files if file is not None]
    assert contents
    assert {machine_of(content) for content in contents} == {ELF_MACHINE[target.architecture]}


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("CXX", "CC", "CXX_aarch64_linux_gnu"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    here, arm = host_target(), other_architecture()
    with pytest.raises(
        UserError, match=r"none is on PATH; install g\+\+ or clang\+\+, set CXX"
    ):
        find_linker(here)
    with pytest.raises(UserError, match=rf"{arm.architecture}-linux-gnu-g\+\+, which is not"):
        find_linker(arm)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UserError, match=r"no-such-compiler \(CXX or CC\), which is not on PATH"
    ):
        find_linker(here)


def other_architecture() -> CpuTarget:
    """A CPU that needs a cross linker, wherever the test runs."""
    return cpu_target("haswell" if host_target().architecture == "aarch64" else "cortex-a76")


def test_cross_linker_by_name_and_by_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No cross linker here, so that a script stands for one: it copies the first object."""
    target = other_architecture()
    base = f"{target.architecture}-linux-gnu"
    script = tmp_path / f"{base}-g++"
    script.write_text('#!/bin/sh\n[ "$1 $2 $3" = "-shared -fPIC -o" ] && cp "$5" "$4"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_linker(target) == script.name
    linked = compile_library(emit_tvm(tiny_program(), target).ir, target)
    assert machine_of(linked) == ELF_MACHINE[target.architecture]
    monkeypatch.setenv(f"CXX_{base.replace('-', '_')}", str(script))
    assert find_linker(target) == str(script)


def test_what_the_linker_says_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "broken-g++"
    script.write_text("#!/bin/sh\necho 'ld: no space left'\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    target = host_target()
    with pytest.raises(UserError) as caught:
        compile_library(emit_tvm(tiny_program(), target).ir, target)
    assert str(caught.value) == f"linking with {script} failed: ld: no space left"
