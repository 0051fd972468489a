"""A check's record: typed, and the JSON of README's schema."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tiny_training import tiny_run

from qtool.checking.accuracy import glue_choices
from qtool.checking.record import CheckRecord
from qtool.core.errors import UserError
from qtool.core.records import from_json, to_json
from qtool.report.table import rows

CONTENT = {
    "files": {"m.onnx": 100, "m.so": 900}, "digest": "d", "dataset": None, "images": 2,
    "accuracy": {"ort": 50.0},
    "glue": {
        "phase": "glue", "bits": "w8a8", "chosen": "mse",
        "choices": [
            {"glue": "float", "accuracy": 90.0, "images": 2},
            {"glue": "mse", "accuracy": 89.5, "images": 2},
        ],
    },
    "tvm": {
        "target": {"triple": "t", "mcpu": "znver4", "isa": "avx2", "features": ["avx2"]},
        "peak_activation_bytes": 12, "largest_pair_bytes": 10, "weight_blob_bytes": 7,
        "kernels": [{"function": "k0", "layers": ["a", "b"], "count": 2}],
        "fallbacks": [{"layer": "x", "operator": "Conv", "reason": "r"}],
        "packed_weights": ["a"], "fused_tensors": [],
    },
    "isa": {
        "summary": "s", "name": "avx2", "features": ["avx2"], "u8s8_exact": True, "wrong": 0,
        "probed": 512,
    },
    "parity": {"tvm": {
        "against": "ort", "required": True, "mismatched": 3, "compared": 9, "max_lsb": 2,
        "first_divergence": {"tensor": "t", "index": [0, 1], "expected": 4, "got": 6},
        "diverging": [
            {"tensor": "t", "mismatched": 3, "compared": 5, "max_lsb": 2, "operator": None}
        ],
        "reason": None, "logits": {"mismatched": 0, "compared": 4}, "same_class": 100.0,
    }},
    "bops": 64, "macs": 1, "layers": {"a": [8, 8]}, "weight_bytes": 1, "file_bytes": 100,
    "integer_coverage": {
        "runtime": "ort", "float_ops": {"Add": 2}, "island_ops": {"Add": 1},
    },
    "islands": [
        {"name": "i", "operators": ["Add"], "mismatched": 0, "compared": 0, "max_lsb": 0},
    ],
    "float_ops": {"ort": {"Add": 2}, "tvm": {}},
    "latency_ms": {"ort": {"median": 1.5, "quartiles": [1.0, 2.0], "threads": 1, "runs": 7}},
    "fp32_accuracy": 91.0, "budget_bops": 128.0, "fp32_file_bytes": 400, "seconds": 1.5,
}  # fmt: skip


def test_a_record_is_its_json_again_in_order() -> None:
    record = CheckRecord.from_json(CONTENT)
    assert json.dumps(record.to_json()) == json.dumps(CONTENT)
    assert record.layers["a"] == (8, 8) and record.latency_ms["ort"].quartiles == (1.0, 2.0)
    assert record.modules["tvm"].target.isa == "avx2"
    assert hash(record.modules["tvm"]) == hash(CheckRecord.from_json(CONTENT).modules["tvm"])


def test_what_was_not_found_out_is_not_in_the_json() -> None:
    demo = {"fp32_accuracy", "budget_bops", "fp32_file_bytes", "seconds"}
    without = {k: v for k, v in CONTENT.items() if k not in demo | {"glue", "tvm"}}
    parity = {"ort": {**CONTENT["parity"]["tvm"], "first_divergence": None, "diverging": []}}
    content = without | {
        "parity": parity,
        "integer_coverage": {"runtime": "ort", "float_ops": {}},
    }
    record = CheckRecord.from_json(content)
    assert record.glue is None and record.modules == {} and record.seconds is None
    assert record.to_json() == content
    assert record.to_json()["parity"]["ort"]["first_divergence"] is None


def test_shapes_that_differ_are_in_the_record() -> None:
    shapes = {"tensor": "t", "expected_shape": [1, 2], "got_shape": [1]}
    parity = {**CONTENT["parity"]["tvm"], "first_divergence": shapes}
    record = CheckRecord.from_json(CONTENT | {"parity": {"tvm": parity}})
    assert record.parity["tvm"].first_divergence.got_shape == (1,)
    assert record.to_json()["parity"]["tvm"]["first_divergence"] == shapes


def test_the_table_is_a_view_of_the_record() -> None:
    record = CheckRecord.from_json(CONTENT)
    table = list(rows(record))
    assert ("accuracy ort", "50.00 % of 2 images") in table
    assert (
        "glue mse",
        "89.50 % of 2 images at w8a8 in torch, 0.50 lost to the grids",
    ) in table
    assert ("parity tvm", "3 of 9 integers differ from ort; up to 2 LSB") in table
    assert ("BOPs", "64 from 1 MACs, 50.0 % of 128") in table
    assert ("file", "m.onnx 100 bytes, 0.250 x the FP32 file") in table
    assert ("file", "m.so 900 bytes") in table
    assert ("tvm code", "znver4, avx2 kernels") in table
    assert ("tvm fallbacks", "x (Conv): r") in table
    assert dict(table)["float islands"].splitlines() == [
        "1 float island: Add", "float operators outside the islands: 1 Add", "i: not compared",
    ]  # fmt: skip
    assert table[-1] == ("latency ort", "1.500 ms, 1 thread")
    assert "glue mse" not in dict(rows(replace(record, glue=None)))


@dataclass(frozen=True)
class Inner:
    n: int
    note: str | None = None


@dataclass(frozen=True)
class Outer:
    pair: tuple[int, float]
    many: tuple[Inner, ...]
    named: Mapping[str, Inner]
    maybe: Inner | None


def test_records_of_records() -> None:
    record = Outer((1, 2.0), (Inner(1), Inner(2, "x")), {"a": Inner(3)}, None)
    value = to_json(record)
    assert value == {
        "pair": [1, 2.0], "many": [{"n": 1}, {"n": 2, "note": "x"}], "named": {"a": {"n": 3}},
        "maybe": None,
    }  # fmt: skip
    assert from_json(Outer, value) == record
    assert from_json(Outer, value | {"pair": [1, 2], "newer": 0}) == record


@pytest.mark.parametrize(
    "change, error",
    [
        ({"pair": [1]}, ValueError), ({"pair": ["1", 2.0]}, TypeError),
        ({"many": 3}, TypeError),
        ({"named": []}, AttributeError), ({"maybe": {}}, KeyError),
        ({"pair": None}, TypeError),
    ],
)  # fmt: skip
def test_values_that_are_no_record(change: dict, error: type[Exception]) -> None:
    value = {"pair": [1, 2.0], "many": [], "named": {}, "maybe": None}
    with pytest.raises(error):
        from_json(Outer, value | change)


def test_damaged_choices_of_glue_are_one_line(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    run.add_metrics(phase="glue", bits="w8a8")
    with pytest.raises(UserError, match="choices of glue grids are damaged"):
        glue_choices(run.folder)
