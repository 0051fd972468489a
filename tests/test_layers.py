"""The code's own rules: who may import whom, and how long a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What passes and runtimes may use of qtool: vocabulary and arithmetic, nothing that trains.
SHARED = {"qspec", "numerics", "cost", "errors", "dialect", "files", "sealed"}


def imports(path: Path) -> set[str]:
    """Return the modules that `path` imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", ["passes", "runtimes"])
def test_passes_and_runtimes_use_only_the_shared_part_of_qtool(package: str) -> None:
    other = {"passes": "runtimes", "runtimes": "passes"}[package]
    for path in sources(package):
        for name in imports(path):
            top, _, rest = name.partition(".")
            assert top not in ("torch", "onnxscript", other), f"{path}: imports {name}"
            if top == "qtool" and rest:
                assert rest.split(".")[0] in SHARED, f"{path}: imports {name}"


def test_the_shared_part_imports_nothing_above_it() -> None:
    for path in sources("qtool"):
        if path.relative_to(ROOT / "qtool").with_suffix("").parts[0] not in SHARED:
            continue
        for name in imports(path):
            top, _, rest = name.partition(".")
            assert top not in ("torch", "passes", "runtimes"), f"{path}: imports {name}"
            if top == "qtool" and rest:
                assert rest.split(".")[0] in SHARED, f"{path}: imports {name}"


def test_tvm_is_imported_only_where_it_was_asked_for() -> None:
    allowed = {
        "passes/emit/te_kernels.py", "passes/emit/te_moves.py", "passes/emit/tvm_module.py",
        "passes/emit/lowering_pipeline.py", "passes/emit/cpu_target.py",
        "passes/emit/library.py", "passes/emit/measure.py",
        "runtimes/tvm.py", "runtimes/host_cpu.py",
    }  # fmt: skip
    for package in ("qtool", "passes", "runtimes"):
        for path in sources(package):
            uses = any(name.split(".")[0] == "tvm" for name in imports(path))
            name = str(path.relative_to(ROOT))
            kernel = name.startswith("passes/emit/kernels/")
            assert not uses or kernel or name in allowed, path


@pytest.mark.parametrize("package", ["qtool", "passes", "runtimes", "examples"])
def test_no_file_is_longer_than_400_lines(package: str) -> None:
    for path in sources(package):
        assert len(path.read_text().splitlines()) <= 400, path
