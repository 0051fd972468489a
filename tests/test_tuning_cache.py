"""The file that keeps what `--tune` found: exact round trips, and damage is one line."""

import json
from pathlib import Path

import pytest

from passes.emit.tvm.tuning import FORMAT, TuneCache, default_cache
from qtool.core.errors import UserError

KEY = "conv 3x3 s1 64x56x56 -> 64"


def test_results_are_kept_by_cpu_and_kernel(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tune.json"
    cache = TuneCache.load(path)
    assert cache.get("znver4", KEY) is None and not path.exists()
    cache.put("znver4", KEY, {"rows": 6, "columns": 4})
    cache.put("haswell", KEY, {"rows": 2})
    cache.save()
    again = TuneCache.load(path)
    assert again.get("znver4", KEY) == {"rows": 6, "columns": 4}
    assert again.get("haswell", KEY) == {"rows": 2}
    assert again.get("haswell", "other") is again.get("znver3", KEY) is None
    assert [p.name for p in path.parent.iterdir()] == ["tune.json"]


def test_two_exports_at_once_keep_the_results_of_both(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    first, second = TuneCache.load(path), TuneCache.load(path)
    first.put("znver4", "a", {"rows": 1})
    second.put("znver4", "b", {"rows": 2})
    first.save()
    second.save()
    merged = TuneCache.load(path)
    assert merged.entries == {"znver4": {"a": {"rows": 1}, "b": {"rows": 2}}}
    assert second.get("znver4", "a") == {"rows": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not readable JSON"),
        (b'{"format": 1, "entr', "is not readable JSON"),
        (b"\xff\xfe\x00", "is not readable JSON"),
        (b"[]", "got a JSON list, expected an object"),
        (b"{}", "format None, expected 1"),
        (b'{"format": 2, "entries": {}}', "format 2, expected 1"),
        (b'{"format": 1}', "is damaged: expected entries"),
        (b'{"format": 1, "entries": {"znver4": []}}', "is damaged: expected entries"),
        (b'{"format": 1, "entries": {"znver4": {"k": 3}}}', "is damaged: expected entries"),
    ],
)
def test_damage_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        TuneCache.load(path)
    text = str(caught.value)
    assert said in text and str(path) in text and "--tune-cache" in text and "\n" not in text
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TuneCache(tmp_path / "file" / "tune.json", {"znver4": {KEY: {}}})
    with pytest.raises(UserError, match=r"cannot be written: .*choose another"):
        cache.save()


def test_the_file_says_its_format(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    TuneCache(path, {"znver4": {KEY: {"rows": 1}}}).save()
    assert json.loads(path.read_text()) == {
        "format": FORMAT, "entries": {"znver4": {KEY: {"rows": 1}}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches/qtool/tune.json"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/me/.cache/qtool/tune.json"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/me/.cache/qtool/tune.json"),
        ("linux", {}, "/me/.cache/qtool/tune.json"),
        ("darwin", {}, "/me/Library/Caches/qtool/tune.json"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/qtool/tune.json"),
    ],
)
def test_default_file_by_platform(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passes.emit.tvm.tuning.sys.platform", platform)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("/me"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_cache() == Path(expected)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("passes.emit.tvm.tuning.sys.platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(UserError, match="no home directory; name a file with --tune-cache"):
        default_cache()
