"""Analysis "choices": bits beside traces and MACs, from runs and as a picture."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from search_nets import float_net
from tiny_training import tiny_data, tiny_run
from torch import nn

from qtool.analyses.choices import MEASURES, analyse, draw, rank_correlation
from qtool.core.errors import UserError
from qtool.core.progress import Silent
from qtool.networks import build_float
from qtool.runs.run import Run
from qtool.runs.stage import Stage

LAYERS = ("0", "3", "6", "11")
IMAGES = 20


def network(in_channels: int = 1, classes: int = 4) -> nn.Module:
    return float_net()


def searched_run(folder: Path, inner: tuple[int, int], *settings: str) -> Run:
    """Return a run with a float network and bits of its two inner layers."""
    run = tiny_run(folder, "model=test_choices:network", "first_last_bits=8", *settings)
    run.save_weights(Stage.FLOAT, build_float(run).state_dict())
    bits = {"0": [8, 8], "3": [4, inner[0]], "6": [4, inner[1]], "11": [8, 8]}
    run.save_bits({"bops": 1_000_000 + inner[0], "budget_bops": 2_000_000, "layers": bits})
    return run


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    runs = [searched_run(folder / "a", (8, 3)), searched_run(folder / "b", (4, 4))]
    return analyse(runs, tiny_data(), IMAGES, Silent())


def test_every_layer_has_its_traces_and_macs(content: dict[str, Any]) -> None:
    assert content["images"] == IMAGES
    rows = {row["name"]: row for row in content["layers"]}
    assert tuple(rows) == LAYERS
    assert [row["open"] for row in content["layers"]] == [False, True, True, False]
    # 3 x 3 positions, 1 x 1 kernel, 8 x 8 channels.
    assert rows["3"]["macs"] == 9 * 64
    for row in rows.values():
        assert math.isfinite(row["trace"]) and row["weight_trace_error"] > 0
        assert row["trace"] == row["weight_trace"] + row["activation_trace"]
        assert row["activation_trace_per_mac"] == row["activation_trace"] / row["macs"]
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_correlations_are_over_the_searched_layers_only(content: dict[str, Any]) -> None:
    first, second = content["runs"]
    rows = {row["name"]: row for row in content["layers"]}
    for name in MEASURES:
        # Of two layers, the ranks agree or they do not.
        agree = rows["3"][name] > rows["6"][name]
        assert first["rank_correlation"][name] == pytest.approx(1 if agree else -1)
    assert set(second["rank_correlation"].values()) == {None}
    assert (first["name"][-2:], second["bits"]["3"]) == ("/a", [4, 4])


def test_rank_correlation_shares_ranks_among_equals() -> None:
    # By hand: ranks 1.5, 1.5, 3, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert rank_correlation([3, 3, 4, 8], [1, 2, 5, 9]) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5)
    )


def test_the_picture_is_a_png_with_a_row_for_each_run(
    content: dict[str, Any], tmp_path: Path
) -> None:
    draw(content, tmp_path / "two.png")
    draw({**content, "runs": content["runs"][:1]}, tmp_path / "one.png")
    sizes = [(tmp_path / name).read_bytes()[:24] for name in ("one.png", "two.png")]
    assert all(start.startswith(b"\x89PNG") for start in sizes)
    heights = [int.from_bytes(start[20:24], "big") for start in sizes]
    assert heights[1] > heights[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_a_run_without_bits_or_of_other_layers_is_refused(tmp_path: Path) -> None:
    run, other = searched_run(tmp_path / "a", (8, 3)), searched_run(tmp_path / "b", (8, 3))
    other.save_bits({"bops": 1, "layers": {"stem": [4, 4]}})
    with pytest.raises(UserError, match="got 0 images"):
        analyse([run], tiny_data(), 0, Silent())
    with pytest.raises(UserError, match=r"has no layer 0, which"):
        analyse([run, other], tiny_data(), IMAGES, Silent())
    other.path("bits.json").unlink()
    with pytest.raises(UserError, match=r"has no bits.json: search first"):
        analyse([run, other], tiny_data(), IMAGES, Silent())
