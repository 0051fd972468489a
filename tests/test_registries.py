"""Targets and runtimes by name: who compares names, what entries say, what a new one takes."""

import ast
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import run_qtool
from test_cli_errors import refused
from test_house import TEXTS
from toy import TOY, ToyRuntime, ToyTarget

from passes.emit.base import options_of
from passes.emit.onnx.onnx_file import FORMS
from passes.emit.onnx.target import OnnxTarget
from passes.emit.registry import TARGETS, make_target, target_for, target_of
from passes.emit.tvm.target import TvmTarget
from qtool.checking.bars import Bars, missed_bars
from qtool.checking.check import check
from qtool.cli.options import output_option, target_options
from qtool.core.errors import UserError
from qtool.core.progress import Silent
from qtool.core.relay.environment import PACKAGES
from qtool.core.setups import SETUPS
from qtool.export.foreign_import import read_foreign
from runtimes.base import Artifact, Runtime
from runtimes.isa import Isa
from runtimes.latency import measure
from runtimes.registry import (
    EXACT,
    RUNTIMES,
    SEARCHED,
    TIMED,
    UNASKED,
    RuntimeEntry,
    runtime_entry,
)

REGISTRIES = ("passes.emit.registry", "runtimes.registry")


# Nobody else compares names


def compared_names(text: str) -> list[str]:
    """Return the comparisons with names of targets and runtimes, or ends of their files."""
    suffixes = [suffix for target in TARGETS.values() for suffix in target.suffixes]
    names = {*TARGETS, *RUNTIMES, *suffixes}
    found = []
    for node in ast.walk(ast.parse(text)):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare | ast.MatchValue):
            parts = [node]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("endswith", "startswith"):
                parts = list(node.args)
        constants = [
            c for part in parts for c in ast.walk(part) if isinstance(c, ast.Constant)
        ]
        if any(constant.value in names for constant in constants):
            found.append(ast.unparse(node))
    return found


def test_only_the_registries_compare_names() -> None:
    found = {module: compared_names(text) for module, text in TEXTS.items()}
    others = {m: f for m, f in found.items() if f and m not in REGISTRIES}
    assert others == {}


@pytest.mark.parametrize(
    "line",
    [
        'x = name == "tvm"', 'x = "ort" in names', 'x = path.suffix in (".so", ".tar")',
        'match name:\n    case "openvino": pass', 'x = path.endswith(".onnx")',
        'x = path.endswith((".toy", ".so"))', 'x = 1 if "reference" != name else 2',
    ],
)  # fmt: skip
def test_a_compared_name_is_found(line: str) -> None:
    assert compared_names(line)
    assert not compared_names('x = "tvm"\ny = f(x, "ort")\nz = name == "opset"')


# Targets


def test_targets_say_what_they_are() -> None:
    for name, target in TARGETS.items():
        assert target.name == name and target.summary and target.suffixes
        for option in options_of(target).values():
            assert option.help[0] != " " and option.help.endswith("."), option
    assert tuple(FORMS) == options_of(OnnxTarget)["format"].choices
    said = run_qtool("list", "targets").out
    assert [line.split()[0] for line in said.splitlines()] == list(TARGETS)


def test_options_of_one_name_are_one_option() -> None:
    known: dict[str, Any] = {}
    for target in TARGETS.values():
        for name, option in options_of(target).items():
            first = known.setdefault(name, option)
            assert (first.kind, first.choices) == (option.kind, option.choices)


def test_options_are_the_fields_of_a_target() -> None:
    made = make_target("tvm", {"mcpu": "haswell", "tune": 0, "emit_ir": None, "format": None})
    assert made == TvmTarget(mcpu="haswell", tune=0)
    assert make_target("onnx", {"format": "qop"}) == OnnxTarget("qop")
    kinds = {name: option.kind for name, option in options_of(TvmTarget).items()}
    assert kinds == {
        "mcpu": str, "tune": int, "tune_cache": Path, "emit_ir": Path,
        "device": str, "arch": str, "batch": int,
    }  # fmt: skip


def test_an_option_of_another_target_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--tune-cache needs --target tvm, got --target onnx$"
    ):
        make_target("onnx", {"tune_cache": Path("c")})
    command = ("import", tiny / "tiny.onnx", "-o", tmp_path / "m.so", "--format", "qop")
    refused(run_qtool(*command), "--format needs --target onnx, got --target tvm")
    assert not list(tmp_path.iterdir())


def test_the_target_that_is_meant() -> None:
    nothing = {"mcpu": None, "format": None}
    for name, target in (("m.so", "tvm"), ("m.tar", "tvm"), ("m.onnx", "onnx"), ("m", "onnx")):
        assert target_for(Path(name), nothing) == target
    assert target_for(None, nothing) == "onnx"
    assert target_for(None, nothing | {"emit_ir": Path("m.py")}) == "tvm"
    assert target_for(None, {"emit_ir": Path("m.py"), "format": "qop"}) == "onnx"
    assert target_of(Path("a.b/model.so")) is TvmTarget and target_of(Path("m.so.txt")) is None


def test_every_file_of_an_export_is_named(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.tar"
    done = run_qtool("import", tiny / "tiny.onnx", "-o", path, "--emit-ir", tmp_path / "m.py")
    named = [line.partition(": ")[0] for line in done.out.splitlines()]
    assert named == [str(tmp_path / name) for name in ("m.tar", "m.json", "m.py")]


def test_an_onnx_file_never_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(UserError, match="exists already"):
        OnnxTarget().check(tmp_path / "m.onnx", force=False)
    with pytest.raises(UserError, match="is a directory"):
        OnnxTarget().check(tmp_path / "m.onnx", force=True)
    with pytest.raises(UserError, match="missing option -o / --output"):
        OnnxTarget().check(None, force=True)


# Runtimes


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_runtimes_say_what_they_are(name: str) -> None:
    entry = RUNTIMES[name]
    assert entry.name == name and entry.runs in TARGETS
    if entry.setup is not None:
        assert entry.setup in SETUPS and entry.package in PACKAGES and entry.version
    elif entry.provider is None:
        try:
            assert entry.version == metadata.version(entry.package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{entry.package} is not installed: extra {entry.extra}")
        entry.require()
    kind = entry._kind()
    assert not kind.__init__.__doc__ or kind.__doc__
    for method in ("require", "open", "run", "intermediates", "float_ops"):
        assert callable(getattr(kind, method))
        assert method in vars(Runtime)


def test_extras_of_runtimes_exist() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    for entry in RUNTIMES.values():
        assert entry.extra is None or f"\n{entry.extra} = [" in text


def test_what_runtimes_are_for() -> None:
    assert UNASKED == ("reference", "ort", "tvm", "relay")
    assert EXACT == ("reference", "ort", "tvm", "triton", "relay")
    assert TIMED == ("ort", "ort-cuda", "ort-tensorrt", "tvm", "openvino", "relay")
    assert SEARCHED == ("ort", "tvm")
    assert [name for name, entry in RUNTIMES.items() if entry.covers] == ["ort"]
    lines = run_qtool("list", "runtimes").out.splitlines()
    said = dict(line.split(maxsplit=1) for line in lines)
    assert said["tvm"] == "TVM virtual machine, CPU or CUDA, on model.so (extra: tvm)"
    assert said["openvino"].endswith("not exact, used on request (extra: openvino)")
    assert said["triton"].endswith("; used on request: it needs a GPU (extra: gpu)")
    assert said["relay"].endswith("on model.relay.json (qtool setup relay)")


def test_why_runtimes_differ() -> None:
    exact, saturating = Isa(("avx512_vnni",), 0, 512), Isa(("avx2",), 3, 512)
    assert [RUNTIMES[name].reason(exact) for name in EXACT] == [None] * 5
    said = [RUNTIMES[name].reason(saturating) for name in UNASKED]
    assert said == [None, f"this CPU has {saturating}", None, None]
    expected = "openvino rounds in its own way (docs/openvino.md)"
    assert RUNTIMES["openvino"].reason(exact) == RUNTIMES["openvino"].reason(saturating)
    assert RUNTIMES["openvino"].reason(exact) == expected


def test_unknown_runtimes_name_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^unknown runtime 'otr': did you mean ort"):
        runtime_entry("otr")
    with pytest.raises(UserError, match=r"^unknown runtime 'reference'"):
        runtime_entry("reference", SEARCHED)


def test_the_reference_needs_the_program(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m.so: the reference needs the program"):
        RUNTIMES["reference"].open(Artifact(tmp_path / "m.so"))


def test_what_is_not_timed_has_no_latency(tiny: Path) -> None:
    with pytest.raises(RuntimeError, match="invalid choice: 'reference'"):
        measure(tiny / "model.onnx", "reference", (2, 5, 5))


# A new target and a new runtime are one folder and one line each


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the two lines."""
    monkeypatch.setitem(TARGETS, "toy", ToyTarget)
    monkeypatch.setitem(RUNTIMES, "toy", TOY)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that what the new runtime needs is installed."""
    true = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "1" if n == "toy-engine" else true(n))


def made(tiny: Path, folder: Path) -> Path:
    """Return a toy file of the tiny network."""
    path = folder / "model.toy.json"
    ToyTarget().write(read_foreign(tiny / "tiny.onnx")[0], path)
    return path


@pytest.mark.usefixtures("toys")
def test_flags_of_a_new_target() -> None:
    given: dict[str, Any] = {}

    @click.command()
    @target_options
    @output_option
    def command(output: Path | None, **options: Any) -> None:
        given.update(options)

    runner = CliRunner()
    text = runner.invoke(command, ["--help"]).output
    assert "TVM, Relay, Toy: CPU to compile for" in " ".join(text.split())
    assert "Toy: N of them.  [default: 3]  [x>=1]" in text and "Toy: be quick.\n" in text
    assert "(tvm), .relay.json (relay), .toy.json or .toy (toy)." in " ".join(text.split())
    runner.invoke(command, ["--quick", "--mcpu", "x"], catch_exceptions=False)
    assert make_target("toy", given) == ToyTarget("x", quick=True)
    runner.invoke(command, [], catch_exceptions=False)
    assert set(given.values()) == {None}
    assert runner.invoke(command, ["--rounds", "0"]).exit_code == 2
    needs = "--mcpu needs --target tvm or relay or toy, got --target onnx"
    with pytest.raises(UserError, match=needs):
        make_target("onnx", {"mcpu": "x"})


@pytest.mark.usefixtures("toys", "engine")
def test_a_new_runtime_is_checked_like_any_other(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tiny / "model.onnx", made(tiny, tmp_path)]
    assert target_for(files[1], {}) == "toy"
    (record,) = check(files, None, ["reference", "toy"], None, Silent())
    assert list(record.files) == [str(path) for path in files]
    parity = record.parity["toy"]
    assert (parity.against, parity.required, parity.mismatched) == ("reference", True, 0)
    assert parity.compared > 0 and missed_bars(record, Bars(parity=True)) == []
    assert record.modules == {} and "toy" not in record.to_json()
    monkeypatch.setattr(ToyRuntime, "wrong", 3)
    (record,) = check(files, None, ["reference", "toy"], None, Silent())
    tensors = len(record.parity["toy"].diverging)
    assert record.parity["toy"].mismatched == 3 * tensors > 0
    (missed,) = missed_bars(record, Bars(parity=True))
    assert missed.startswith(f"toy differs from reference in {3 * tensors} of ")


@pytest.mark.usefixtures("toys")
def test_a_new_runtime_says_what_it_lacks(tiny: Path, tmp_path: Path) -> None:
    path = made(tiny, tmp_path)
    lacks = run_qtool("check", tiny / "model.onnx", "--runtime", "toy")
    refused(lacks, "runtime toy needs a .toy.json file of this model among the files")
    refused(run_qtool("check", path, "--runtime", "toy"), "needs toy-engine, not installed")
    known = "unknown kind of file; expected .onnx or .so or .relay.json or .toy"
    refused(run_qtool("check", "m.toy"), known)
    assert "a runtime of the tests (extra: toys)" in run_qtool("list", "runtimes").out
    counted = json.loads(run_qtool("bops", path, "--json").out)
    assert counted["bops"] == json.loads(path.read_text())["facts"]["bops"]


def test_files_that_only_an_inexact_runtime_executes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = RuntimeEntry("toy", "toy:ToyRuntime", "", "toy", "toy-engine", differs="guesses")
    monkeypatch.setitem(TARGETS, "toy", ToyTarget)
    monkeypatch.setitem(RUNTIMES, "toy", entry)
    result = run_qtool("check", made(tiny, tmp_path))
    refused(result, "no exact runtime executes", "model.toy.json; name others with --runtime")
