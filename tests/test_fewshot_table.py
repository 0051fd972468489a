"""The table of few-shot runs: what a row is called, and what seeds have in common."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from fewshot_sets import pn_config
from test_maml import maml_config

from qtool.settings.registry import to_json

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("fewshot_table")


def test_methods_are_called_as_in_the_paper(table: Any) -> None:
    one = ("shared_steps=false",)
    names = [
        table.method(to_json(config))
        for config in (
            pn_config(), pn_config("inner_loop=joint"), pn_config("inner_loop=none"),
            pn_config("bits=fp", *one), pn_config("bits=w4a4", *one), maml_config(),
            maml_config("bits=w4a8", *one),
        )
    ]  # fmt: skip
    assert names == [
        "MEBQAT-PN", "MEBQAT-PN, jointly-varying inner loop", "MEBQAT-PN, no inner loop",
        "PN", "PN + QAT w4a4", "MEBQAT-MAML", "FOMAML + QAT w4a8",
    ]  # fmt: skip


def test_seeds_of_a_method_are_one_row(table: Any) -> None:
    def row(method: str, seed: int, accuracy: float) -> dict[str, Any]:
        found = {"accuracy": accuracy, "interval": 0.5, "transductive": accuracy + 1}
        settings = dict.fromkeys(table._SETTINGS, 4)
        return {
            "method": method, "seed": seed, "task": "5-way 1-shot", **settings,
            "pairs": {"w2a2": found},
        }  # fmt: skip

    rows = [row("PN", 0, 50.0), row("MEBQAT-PN", 0, 60.0), row("PN", 1, 53.0)]
    _, _, *lines = table.markdown(rows, ["w2a2"])
    assert lines == [
        "| PN | 5-way 1-shot | 0, 1 | 16 | 51.50 ± 0.50 (52.50) |",
        "| MEBQAT-PN | 5-way 1-shot | 0 | 16 | 60.00 ± 0.50 (61.00) |",
    ]
