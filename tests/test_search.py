"""`qtool search`: every method, several budgets from one meta-state, refusals, resuming."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import run_qtool
from torch import Tensor

from qtool.search import METHODS
from qtool.tensor_file import load_tensors
from qtool.training.losses import Objective


def bits_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "bits.json").read_text())
    return content


def search(run: Path, *args: object) -> str:
    result = run_qtool("search", run, *args)
    assert result.code == 0, result.err
    return result.out + result.err


def refusal(run: Path, *args: object) -> str:
    result = run_qtool("search", run, *args)
    lines = result.err.strip().splitlines()
    assert result.code == 2 and len(lines) == 1, result.err
    return lines[0].removeprefix("qtool: error: ")


@pytest.fixture
def front(run_copy: Path) -> Path:
    search(run_copy, "--bops", "50M", "--bops", "45M", "--no-finetune")
    return run_copy / "pareto"


def test_a_front_is_what_each_budget_gives_alone(
    front: Path, run_copy: Path, tmp_path: Path
) -> None:
    for name in ("50M", "45M"):
        alone = tmp_path / name
        search(run_copy, "--bops", name, "--no-finetune", "--out", alone)
        assert bits_of(alone) == bits_of(front / name)
        pair = [
            load_tensors(run / "model.safetensors", "")[0] for run in (alone, front / name)
        ]
        assert all(bool((pair[0][key] == pair[1][key]).all()) for key in pair[0])
    points = json.loads((front / "pareto.json").read_text())["points"]
    assert [(p["run"], p["budget_bops"]) for p in points] == [("50M", 50e6), ("45M", 45e6)]
    assert all(0.97 * p["budget_bops"] <= p["bops"] <= p["budget_bops"] for p in points)


def test_each_of_a_front_is_a_run_that_exports(front: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    done = run_qtool("export", front / "45M", "--target", "onnx", "-o", output)
    assert done.code == 0 and output.exists(), done.err


def test_a_front_lies_between_the_uniform_bits(run_copy: Path) -> None:
    shown = search(run_copy, "--front", 2, "--no-finetune")
    assert "bits chosen" in shown
    points = json.loads((run_copy / "pareto" / "pareto.json").read_text())["points"]
    low, *budgets, high = [38.759e6, *(point["budget_bops"] for point in points), 99.938e6]
    ratios = [b / a for a, b in pairwise([low, *budgets, high])]
    assert len(budgets) == 2 and max(ratios) < 1.001 * min(ratios)
    assert all(0.97 * p["budget_bops"] <= p["bops"] <= p["budget_bops"] for p in points)


@pytest.mark.parametrize(
    "method", [name for name, of in METHODS.items() if of.of_meta and name != "metamix"]
)
def test_methods_stay_within_the_budget(method: str, run_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = search(
        run_copy, "--bops", "48M", "--method", method, "--no-finetune", "--out", out
    )
    content = bits_of(out)
    assert content["method"] == method and "bits chosen" in shown
    assert 0.97 * 48e6 <= content["bops"] <= 48e6
    assert {"float", "meta", "searched", "model"} <= {
        f.stem for f in out.glob("*.safetensors")
    }


def test_pairs_of_weights_and_activations(run_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--weights", "8,4,2", "--activations", "8,4", "--out", out)
    search(run_copy, "--bops", "48M", "--no-finetune", *options)
    content = bits_of(out)
    inner = [tuple(pair) for pair in content["layers"].values()][1:-1]
    assert {w for w, _ in inner} <= {8, 4, 2} and {a for _, a in inner} <= {8, 4}
    assert len({w for w, _ in inner}) > 1
    recipe = json.loads((out / "recipe.json").read_text())["recipe"]
    assert (recipe["weight_bits"], recipe["activation_bits"]) == ([8, 4, 2], [8, 4])
    done = run_qtool("export", out, "--target", "onnx", "-o", tmp_path / "model.onnx")
    assert done.code == 0, done.err


def test_without_a_fixed_meta_state_weights_train_along(
    run_copy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--set", "fixed_meta_state=false", "--no-finetune", "--out", out)
    search(run_copy, "--bops", "48M", *options)
    assert bits_of(out)["bops"] <= 48e6


def test_an_interrupted_front_goes_on(run_copy: Path, front: Path) -> None:
    before = {name: bits_of(front / name) for name in ("50M", "45M")}
    budgets = ("--bops", "50M", "--bops", "45M")
    assert "recipe.json exists already" in refusal(run_copy, *budgets)
    shown = search(run_copy, *budgets, "--resume")
    assert "bit-search" not in shown and shown.count("fine-tune 4/4") == 2
    for name, content in before.items():
        assert bits_of(front / name) == {**content, "finetuned": True}
    points = json.loads((front / "pareto.json").read_text())["points"]
    assert all(0 <= point["accuracy"] <= 100 for point in points)
    asked = refusal(run_copy, *budgets, "--resume", "--method", "greedy")
    assert "answers metamix at 50.000 MBOPs, not greedy at 50.000 MBOPs" in asked


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((), "a search needs a budget: --bops 5.3G, --size 2MB or --latency 3ms"),
        (("--bops", "50M", "--bops", "5e7"), "budgets 50M, 50M: one of them is there twice"),
        (
            ("--bops", "1M", "--force"),
            "budget 1.000 MBOPs is below every selection; reachable:",
        ),
        (
            ("--bops", "1G", "--force"),
            "budget 1.000 GBOPs is above every selection, so there is nothing",
        ),
        (("--bops", "48M", "--activations", "x"), "--activations x: expected bits such as"),
        (("--bops", "48M", "--activations", "8,8"), "--activations 8,8: a candidate is there"),
        (("--bops", "48M", "--activations", "4"), "weights of 4 and activations of 4 bits"),
        (("--bops", "48M", "--activations", "9,8"), "recipe setting activation_bits: got 9"),
        (("--bops", "48M", "--activations", "8,4"), "has other candidates or settings"),
        (("--bops", "48M", "--activations", "3", "--power-of-two"), "none of 3 is a power"),
        (("--bops", "48M", "--force", "--set", "epochs=3"), "unknown recipe setting 'epochs'"),
        (("--bops", "48M"), "bits.json exists already; nothing was written (--force"),
        (("--latency", "3ms"), "bits.json exists already; nothing was written (--force"),
        (("--latency", "3"), "latency '3': expected a positive number such as 3ms"),
        (("--size", "2Q"), "size '2Q': expected a positive number such as 2MB"),
    ],
)  # fmt: skip
def test_refusals(args: tuple[str, ...], text: str, searched_run: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in searched_run.iterdir()}
    assert text in refusal(searched_run, *args)
    assert {file: file.stat().st_mtime_ns for file in searched_run.iterdir()} == before


def test_candidates_that_the_meta_state_lacks(run_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = refusal(run_copy, "--bops", "48M", "--activations", "8,5,3", "--out", out)
    assert "its meta-state has activations of 8, 4, 3 bits, not 5: choose among these" in text
    assert not (out / "bits.json").exists()


def test_alpha_minimises_the_recipes_loss_teacher_included(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, losses, made = [], [], Objective.on

    def on(objective: Objective, x: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        batches.append(len(labels))
        loss = made(objective, x, labels)

        def counted(logits: Tensor) -> Tensor:
            losses.append(len(logits))
            return loss(logits)

        return counted

    monkeypatch.setattr(Objective, "on", on)
    search(
        run_copy, "--bops", "50M", "--bops", "45M", "--no-finetune", "--out", tmp_path / "o"
    )
    # 4 batches: bit-meta's three candidates, then both budgets on one teacher's answer.
    assert (len(batches), len(losses)) == (4 + 4, 4 * 3 + 4 * 2)
