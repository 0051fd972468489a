"""The code's own rules: who may import whom, and how long files and functions may be."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up: a file imports its own room and lower floors. Rooms of one floor do not
# import each other. A file is in the room with the longest matching name.
FLOORS = (
    ("qtool", "qtool.core"),
    ("qtool.parallel", "qtool.native", "qtool.tensor_file"),
    ("qtool.data", "qtool.models"),
    ("qtool.quantizers",),
    ("qtool.settings",),
    ("qtool.recipes", "qtool.runs"),
    ("qtool.nn.ops",),
    ("qtool.nn.modules",),
    ("qtool.nn.capture",),
    ("qtool.nn.prepare",),
    ("qtool.nn",),
    ("qtool.networks",),
    ("qtool.training",),
    ("qtool.frontends",),
    ("passes", "runtimes"),
    ("qtool.export",),
    ("qtool.witness",),
    ("qtool.checking", "qtool.search"),
    ("qtool.report",),
    ("qtool.analyses",),
    ("qtool.cli",),
    ("qtool.__main__",),
)
# What may be imported of all that is below, where that is less than all.
ONLY = {"passes": ("qtool", "qtool.core"), "runtimes": ("qtool", "qtool.core")}
# Families: none imports another. The emit wings too, but for what `SHARED_WINGS` says.
FAMILIES = ("qtool.frontends", "passes.emit")
# What their members share.
COMMON = (
    "qtool.frontends.float_network", "qtool.frontends.joint_state",
    "qtool.frontends.meta_state",
    "passes.emit.base", "passes.emit.facts", "passes.emit.registry",
)  # fmt: skip
SHARED_WINGS = {"passes.emit.cuda": ("passes.emit.tvm",)}
# The only places that import TVM itself.
TVM = (
    "passes.emit.tvm", "runtimes.tvm", "runtimes.host_cpu", "runtimes.host_gpu",
    "qtool.core.relay.worker",
)  # fmt: skip
# The only place that imports Triton, and of the runtimes and passes the only one with torch.
TRITON = "runtimes.triton"
MAX_FILE, MAX_FUNCTION = 350, 40

Sources = dict[str, str]
Imports = dict[str, set[str]]


def sources() -> Sources:
    """Return the text of every module by its name."""
    paths = [p for top in ("qtool", "passes", "runtimes") for p in (ROOT / top).rglob("*.py")]
    return {module_name(path): path.read_text() for path in paths}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(text: str) -> set[str]:
    """Return every name that is imported, anywhere in the file, for types only or not."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports are not used here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def internal(texts: Sources) -> Imports:
    """Return which of `texts`' modules each of them imports."""
    return {
        module: {owner for name in imported(text) if (owner := _owner(name, texts))} - {module}
        for module, text in texts.items()
    }


def _owner(name: str, texts: Sources) -> str | None:
    """Return the module that `name` is, or is defined in."""
    if name in texts:
        return name
    above = name.rpartition(".")[0]
    return above if above in texts else None


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def room_of(module: str) -> tuple[int, str]:
    """Return the floor and the room of a module."""
    rooms = [
        (len(room), floor, room)
        for floor, rooms in enumerate(FLOORS)
        for room in rooms
        if (module == room if room == "qtool" else inside(module, room))
    ]
    assert rooms, f"{module} is on no floor"
    return max(rooms)[1:]


def wrong_imports(imports: Imports) -> Iterator[str]:
    """Say which imports go up, sideways, or where they may not."""
    for module, targets in sorted(imports.items()):
        floor, room = room_of(module)
        for target in sorted(targets):
            below, other = room_of(target)
            if room != other and below >= floor:
                yield f"{module} imports {target}: floor {floor} imports floor {below}"
            allowed = ONLY.get(room)
            if allowed and room != other and other not in allowed:
                yield f"{module} imports {target}: {room} may use {', '.join(allowed)} only"
            if between_families(module, target):
                yield f"{module} imports {target}: families do not import each other"


def between_families(module: str, target: str) -> bool:
    for family in FAMILIES:
        one, other = (_branch(name, family) for name in (module, target))
        if one and other and one != other and other not in SHARED_WINGS.get(one, ()):
            return True
    return False


def _branch(module: str, family: str) -> str | None:
    """Return the member of `family` that `module` is, or is in."""
    if not module.startswith(f"{family}.") or module in COMMON:
        return None
    return f"{family}.{module.removeprefix(f'{family}.').split('.')[0]}"


def circles(imports: Imports) -> list[list[str]]:
    """Return the modules that import each other in a circle: what no order can undo."""
    left = {module: set(targets) for module, targets in imports.items()}
    while free := {module for module, targets in left.items() if not targets & set(left)}:
        left = {module: targets for module, targets in left.items() if module not in free}
    while free := set(left) - {name for targets in left.values() for name in targets}:
        left = {module: targets for module, targets in left.items() if module not in free}
    return [sorted(left)] if left else []


TEXTS = sources()


def test_imports_go_down() -> None:
    assert list(wrong_imports(internal(TEXTS))) == []


def test_there_is_no_circle() -> None:
    assert circles(internal(TEXTS)) == []


@pytest.mark.parametrize(
    "module, line, said",
    [
        ("qtool.core.cost", "from qtool.runs.run import Run", "floor 0 imports floor"),
        ("qtool.data.batches", "import qtool.models.macs", "floor 2 imports floor 2"),
        ("passes.graph", "from qtool.networks import build_float", "qtool.core only"),
        ("runtimes.ort", "from passes.graph import FakeQuant", "runtimes may use"),
        ("qtool.training.loop", "def f():\n    import qtool.cli.main", "imports floor"),
        (
            "qtool.frontends.ptq.frontend", "from qtool.frontends.metamix import bit_meta",
            "families do not import each other",
        ),
        (
            "qtool.frontends.qat", "from qtool.frontends.metamix.bit_meta import bit_meta",
            "families do not import each other",
        ),
        (
            "passes.emit.onnx.target", "from passes.emit.tvm.target import TvmTarget",
            "families do not import each other",
        ),
    ],
)  # fmt: skip
def test_an_import_that_goes_up_is_found(module: str, line: str, said: str) -> None:
    texts = {**TEXTS, module: f"{TEXTS[module]}\n{line}\n"}
    assert any(said in found for found in wrong_imports(internal(texts)))


def test_a_new_room_needs_a_floor() -> None:
    with pytest.raises(AssertionError, match=r"qtool\.attic is on no floor"):
        room_of("qtool.attic")


def test_a_circle_is_found() -> None:
    line = "if TYPE_CHECKING:\n    from qtool.core.files import write_json\n"
    texts = {**TEXTS, "qtool.core.errors": TEXTS["qtool.core.errors"] + line}
    (circle,) = circles(internal(texts))
    assert {"qtool.core.errors", "qtool.core.files"} <= set(circle)


def test_passes_runtimes_and_core_do_not_import_torch() -> None:
    """But for the runtime that computes on torch's tensors."""
    for module, text in TEXTS.items():
        if any(inside(module, room) for room in ("passes", "runtimes", "qtool.core")):
            tops = {name.split(".")[0] for name in imported(text)}
            heavy = {"onnxscript", "safetensors"}
            assert not tops & (heavy if inside(module, TRITON) else heavy | {"torch"}), module


def test_triton_is_imported_only_where_its_kernels_are() -> None:
    for module, text in TEXTS.items():
        tops = {name.split(".")[0] for name in imported(text)}
        assert "triton" not in tops or inside(module, TRITON), module


def test_tvm_is_imported_only_where_it_was_asked_for() -> None:
    for module, text in TEXTS.items():
        if any(name.split(".")[0] == "tvm" for name in imported(text)):
            assert any(inside(module, place) for place in TVM), module


def test_no_file_is_too_long() -> None:
    long = {m: n for m, t in TEXTS.items() if (n := len(t.splitlines())) > MAX_FILE}
    assert long == {}


def test_no_function_is_too_long() -> None:
    long = {
        f"{module}.{node.name}": length
        for module, text in TEXTS.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION
    }
    assert long == {}


def test_pages_that_are_named_exist() -> None:
    root = Path(__file__).parent.parent
    texts = [*root.glob("*.md"), *root.glob("docs/*.md")]
    for package in ("qtool", "passes", "runtimes", "examples", "benchmarks"):
        texts += (root / package).rglob("*.py")
    named = {
        (page, str(text.relative_to(root)))
        for text in texts
        for page in re.findall(r"\bdocs/[a-z_]+\.md\b", text.read_text())
    }
    assert named and not [(page, by) for page, by in named if not (root / page).exists()]
