"""Table and picture of bits files, whatever a file has."""

import struct
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qtool.report.bits import bits_picture, bits_table

LAYERS = {"first": [8, 8], "a": [4, 3], "b": [4, 1], "last": [8, 8]}
MACS = {"first": 1000, "a": 20_000, "b": 3, "last": 4}
VARYING = {name: [weight, 5] for weight, name in enumerate("abcdefgh", 1)}
SEARCHED = {"layers": LAYERS, "layer_macs": MACS, "bops": 49e6, "budget_bops": 50e6}
BY_HAND = {"format": 1, "default": "w4a4", "layers": {"layer3.*": "w2a8"}}
FLOAT = {"layers": LAYERS | {"a": [32, 32]}}


def shown(content: dict[str, Any]) -> str:
    """Return the title, which a console may wrap, and the table."""
    console, table = Console(width=120), bits_table(content)
    with console.capture() as text:
        console.print(table)
    return "\n".join([str(table.title), *(line.rstrip() for line in text.get().splitlines())])


@pytest.mark.parametrize(("content", "wanted"), [
    (SEARCHED, ["bits: 49.000 MBOPs, 98.0 % of the budget", "20,000", "4  3  ███"]),
    ({"layers": LAYERS, "bops": 49e6}, ["bits: 49.000 MBOPs\n"]),
    (SEARCHED | {"bytes": 90e3, "budget_bytes": 100e3, "budget_seconds": 3e-3},
     ["98.0 % of the budget; 90.000 KB of weights, 90.0 % of the budget; budget 3.000 ms"]),
    (BY_HAND, ["layer3.*", "2  8  ████████", "(all others)", "4  4  ████"]),
    (FLOAT, ["a      32  32  ████████"]),
])  # fmt: skip
def test_a_table_says_what_is_there(content: dict[str, Any], wanted: list[str]) -> None:
    text = shown(content)
    assert all(part in text for part in wanted), text
    assert ("MACs" in text) == ("layer_macs" in content)


def test_weights_have_bars_where_inner_layers_differ() -> None:
    assert "weight bits" in shown({"layers": VARYING})
    assert "weight bits" not in shown({"layers": LAYERS})


def test_every_width_has_a_colour_of_its_own() -> None:
    table = bits_table({"layers": VARYING})
    cells = [str(cell) for cell in table.columns[4].cells]
    assert len({cell.partition("]")[0] for cell in cells}) == len(cells) == 8


def test_pictures_have_a_panel_for_all_that_is_known(tmp_path: Path) -> None:
    heights = []
    for content in (
        BY_HAND,
        SEARCHED,
        {"layers": VARYING, "layer_macs": dict.fromkeys(VARYING, 9)},
    ):
        bits_picture(content, tmp_path / "bits.png")
        data = (tmp_path / "bits.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        heights.append(struct.unpack(">II", data[16:24])[1])
    assert heights[0] < heights[1] < heights[2]
