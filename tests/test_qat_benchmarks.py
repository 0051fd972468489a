"""The training benchmarks: variants by name, the memory of a step, and their tables."""

import importlib
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a file of benchmarks/."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_variants_go_round_by_name(module: Any) -> None:
    step = module("qat_step")
    chosen = step.variants(step.arguments(["--modes", "eager,native"]))
    assert len(chosen) == len(set(chosen)) == 1 + 4 * 3 + 2
    assert [type(v).parse(v.name) for v in chosen] == chosen
    only = step.variants(step.arguments(["--modes", "eager", "--glue", "with"]))
    assert only[1].name == "lsq eager integer-only"
    assert chosen[1].name == "lsq eager"


@pytest.mark.parametrize("words", [
    ["--turns", "1"], ["--glue", "maybe"], ["--nets", "resnet19"], ["--threads", "0"],
])  # fmt: skip
def test_wrong_words_are_refused(
    module: Any, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit):
        module("qat_step").arguments(words)
    assert "error:" in capsys.readouterr().err


def test_rows_compare_with_float_of_the_same_round(module: Any) -> None:
    rows, Variant = module("step_rows"), module("step_networks").Variant
    Timing = module("interleaved").Timing
    timings = {
        Variant("float"): Timing((100.0, 200.0, 400.0), (1.0, 1.0, 1.0)),
        Variant("lsq", "eager", True): Timing((150.0, 300.0, 600.0), (1.0, 1.0, 1.0)),
    }
    peaks = {v: rows.Peaks(10 * (1 + i), None) for i, v in enumerate(timings)}
    table = list(rows.table_rows("net", 128, 2, 0.5, timings, peaks))
    assert [(row.bits, row.ratio_to_float, row.ratio_peak) for row in table] == [
        ("float", 1.0, 1.0), ("w4a4", 1.5, 2.0),
    ]  # fmt: skip
    assert table[1].ms_per_step == 300.0
    assert list(rows.markdown(table))[3].startswith("| net | lsq | eager | yes | 300 | 1.500")


def test_peak_is_the_largest_total_inside_the_marked_step(module: Any) -> None:
    engine = module("step_engine")
    events = [
        {"name": "[memory]", "ts": 1.0, "args": {"Total Allocated": 900}},
        {"name": engine._MARK, "ts": 2.0},
        {"name": "[memory]", "ts": 3.0, "args": {"Total Allocated": 500}},
        {"name": "[memory]", "ts": 4.0, "args": {"Total Allocated": 700}},
    ]
    assert engine.largest_total(events) == 700


def test_tensors_of_a_step_are_counted(module: Any) -> None:
    engine, Variant = module("step_engine"), module("step_networks").Variant
    trainer = engine.Trainer("cnn4_omniglot", Variant("float"), 2)
    weights = sum(p.numel() * 4 for p in _built(trainer).parameters())
    # Weights, gradients and momenta at least.
    assert 3 * weights < engine.tensor_peak(trainer) < 3 * weights + 50e6


def _built(trainer: Any) -> Any:
    trainer.step()
    return trainer.model


def test_qat_rows_become_a_table(module: Any) -> None:
    row = {
        "bits": "w4a4", "epochs": 8, "seed": 0, "file_bytes": 1000, "minutes": 20.4,
        "threads": 2, "accuracy": {"float": 91.73, "fake_quant": 91.3, "ort": 91.31},
        "parity": {"mismatched": 0, "compared": 12345},
    }  # fmt: skip
    line = list(module("qat_table").markdown([row]))[2]
    assert line == (
        "| W4A4 | 8 | 0 | 91.73 % | 91.30 % | 91.31 % | 0.42 | 0 of 12,345 | 1,000 | 20, 2 |"
    )
