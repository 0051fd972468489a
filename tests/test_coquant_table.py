"""The benchmark of joint training: what is trained, what is measured, and its tables."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from qtool.core.files import write_json
from qtool.recipes import load_recipe
from qtool.settings.override import override

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("coquant_table")


class Commands:
    """Stands for `qtool`: keeps what it is asked, and writes what the commands would leave."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []

    def __call__(self, threads: int, *words: object) -> None:
        self.words.append(text := [str(word) for word in words])
        if text[0] == "train":
            run = Path(text[text.index("--out") + 1])
            run.mkdir(parents=True)
            (run / "model.safetensors").touch()
            return
        pairs = {
            name: {"bits": [int(name[1]), int(name[3])], "accuracy": 90.0, "where": "ort"}
            | ({"zero_shot": {"weights": [2, 8]}} if "--calibration" in text else {})
            for name in text[text.index("--bits") + 1].split(",")
        }
        more = {"delta": {"delta": 99.0}} if "--delta" in text else {}
        write_json(Path(text[text.index("--json") + 1]), {"pairs": pairs, **more})


def run(table: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Commands, str]:
    from click.testing import CliRunner

    commands = Commands()
    monkeypatch.setattr(table, "qtool", commands)
    done = CliRunner().invoke(table.main, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return commands, done.output


def test_all_methods_start_from_one_float_network(
    table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("--data", "D", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "rows"))
    few = (*words, "--seeds", "5", "--methods", "coquant,individual", "--precisions", "8,2")
    commands, output = run(table, monkeypatch, *few)
    trains = [words for words in commands.words if words[0] == "train"]
    names = [Path(words[words.index("--out") + 1]).name for words in trains]
    assert names == ["float-5", "individual-w8a8-5", "individual-w2a2-5", "coquant-5"]
    for words_ in trains:
        assert "seed=5" in words_
        assert (f"weights={tmp_path / 'out/float-5'}" in words_) == (words_ is not trains[0])
    assert "method=coquant" in trains[-1]
    evals = [words for words in commands.words if words[0] == "eval"]
    assert evals[2][2:5] == ["--delta", *(str(tmp_path / f"out/{n}") for n in names[1:3])]
    assert "w7a7,w5a5,w3a3" in evals[3] and evals[3][2:4] == ["--calibration", "D"]
    assert "| coquant | 5 | 90.00 | 90.00 | 99.00 % |" in output
    assert "| coquant | 5 | 90.00 (+0.00) | 90.00 (+0.00) | 90.00 (+0.00) |" in output
    # Repeated: nothing is trained again, and the rows are replaced.
    again, _ = run(table, monkeypatch, *few)
    assert {words[0] for words in again.words} == {"eval"}
    assert len(json.loads((tmp_path / "rows").read_text())["rows"]) == 2


def test_recipes_and_variants_exist(table: Any) -> None:
    options = {option.name: option.default for option in table.main.params}
    joint, alone = (load_recipe(options[name]) for name in ("recipe", "individual"))
    for ablation in (None, *table._ABLATIONS):
        for variant in table.variants(options["methods"], ablation, (8, 6, 4, 2)):
            config = override(alone if variant.alone else joint, list(variant.settings))
            if not variant.alone:
                assert tuple(config.activation_bits) == variant.precisions


@pytest.mark.parametrize(("ablation", "names"), [
    ("lambda", ["individual", "lambda 0", "lambda 0.001", "lambda 1"]),
    ("precisions", ["individual", "B 8,6,4,2", "B 8,2", "B 8,4"]),
    ("quantizers", ["individual", "sat", "sat_centered", "dorefa"]),
])  # fmt: skip
def test_ablations(table: Any, ablation: str, names: list[str]) -> None:
    found = table.variants("coquant", ablation, (8, 6, 4, 2))
    assert [variant.name for variant in found] == names


def row(table: Any, name: str, seed: int, accuracy: dict[int, float], **more: float) -> Any:
    pairs = {
        f"w{b}a{b}": {"bits": [b, b], "accuracy": value, "where": "ort"}
        | ({"zero_shot": {"weights": [b - 1, b + 1]}} if b % 2 else {})
        for b, value in accuracy.items()
    }
    return {"variant": name, "seed": seed, "recipe": "r", "pairs": pairs, **more}


def test_tables_are_means_over_seeds(table: Any) -> None:
    rows = [
        row(table, "a", 0, {4: 90.0, 3: 88.0, 2: 80.0}, delta=99.0),
        row(table, "a", 1, {4: 92.0, 3: 89.0, 2: 82.0}, delta=101.0),
        row(table, "b", 0, {4: 91.0}),
    ]
    assert list(table.accuracies(rows)) == [
        "| | seeds | 4 bits | 2 bits | Delta_B |",
        "|---|---|---|---|---|",
        "| a | 0, 1 | 91.00 ± 1.41 | 81.00 ± 1.41 | 100.00 ± 1.41 % |",
        "| b | 0 | 91.00 |  |  |",
    ]
    assert list(table.zero_shots(rows)) == [
        "| zero-shot | seeds | 3 bits |",
        "|---|---|---|",
        "| a | 0, 1 | 88.50 ± 0.71 (+2.50) |",
    ]
    assert list(table.zero_shots(rows[2:])) == []
