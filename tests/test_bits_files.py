"""Bits by hand: files and lists with names, patterns and a default; the file's schema."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from conftest import graph, run_qtool
from json_schema import fits

from passes.adaptive.resolve_bits import ResolveBits
from qtool.core.errors import UserError
from qtool.core.selection import LayerBits, Selection, read_selection, selection_from_json

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "bits.schema.json").read_text())
LAYERS = (
    "conv1",
    "layer1.0.conv1",
    "layer1.0.conv2",
    "layer3.0.conv1",
    "layer3.0.conv2",
    "fc",
)
BY_HAND = {
    "format": 1,
    "default": "w4a4",
    "layers": {"conv1": [8, 8], "layer3.*": "w4a8", "*.conv2": [4, 3]},
}
BITS = {
    "conv1": (8, 8), "layer1.0.conv1": (4, 4), "layer1.0.conv2": (4, 3),
    "layer3.0.conv1": (4, 8), "layer3.0.conv2": (4, 3), "fc": (4, 4),
}  # fmt: skip


def bits_of(selection: Selection, layers: tuple[str, ...] = LAYERS) -> dict[str, Any]:
    found = {name: selection.of(name) for name in layers}
    return {name: (b.weight, b.activation) if b else None for name, b in found.items()}


def write(folder: Path, content: object) -> str:
    path = folder / "hand.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_names_beat_patterns_and_the_last_pattern_counts(tmp_path: Path) -> None:
    """In a file and in a list, whichever comes first, resolved or not."""
    listed = "w4a4, conv1=w8a8,layer3.*=w4a8,*.conv2=W4A3"
    reordered = {**BY_HAND, "layers": dict(reversed(BY_HAND["layers"].items()))}  # type: ignore[attr-defined]
    for text in (listed, write(tmp_path, BY_HAND)):
        selection = read_selection(text)
        assert bits_of(selection) == bits_of(selection.resolve(LAYERS)) == BITS
    other = read_selection(write(tmp_path, reordered))
    assert bits_of(other) == BITS | {"layer3.0.conv2": (4, 8)}


def test_resolving_leaves_names_only() -> None:
    resolved = read_selection("layer3.*=w4a8,conv1=w8a8").resolve(LAYERS)
    assert list(resolved.layers) == ["conv1", "layer3.0.conv1", "layer3.0.conv2"]
    assert resolved.default is None and resolved.resolve(LAYERS) == resolved


def test_a_name_with_a_bracket_is_a_name_first() -> None:
    """As a pattern, ``a[1]`` matches ``a1`` only."""
    selection = Selection({"a[1]": LayerBits(2, 2)})
    assert bits_of(selection.resolve(["a[1]"]), ("a[1]",)) == {"a[1]": (2, 2)}


@pytest.mark.parametrize(("text", "message"), [
    ("w4a4,covn1=w8a8", "unknown layer or pattern in --bits 'covn1': did you mean conv1"),
    ("w4a4,layer4.*.conv1=w8a8", "'layer4.*.conv1': did you mean layer"),
    ("conv1=w8a8,conv1=w4a4", "conv1 is given twice"),
    ("w4a4,w8a8", "the default is given twice"),
    ("w4a4,conv1=w8", "'conv1=w8' is not like w4a4, conv1=w8a8 or layer3.*=w4a8"),
    ("conv1=w9a8", "weight bits 9 not supported"),
    ("conv1=w4a32", "weights of 4 bits with an input of 32"),
    ("x" * 5000 + "=8", "is not like w4a4"),
])  # fmt: skip
def test_lists_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_selection(text).resolve(LAYERS)
    assert message in str(error.value)


@pytest.mark.parametrize(("content", "message"), [
    ({"layers": {}}, 'hand.json: no format number; write "format": 1 into it'),
    ({"format": 2, "layers": {}}, "format 2 is newer than this qtool reads"),
    ({"format": 1}, "no 'layers' object"),
    ({"format": 1, "layers": [4, 4]}, "no 'layers' object"),
    ({"format": 1, "layers": {}, "defualt": "w4a4"}, "'defualt': did you mean default?"),
    ({"format": 1, "layer": {}, "default": "w4a4"}, "'layer': did you mean layers?"),
    ({"format": 1, "default": "w4"}, 'default: got "w4", expected [w, a] such as [4, 8], or'),
    ({"format": 1, "layers": {"fc": [4]}}, "layer fc: got [4], expected [w, a]"),
    ({"format": 1, "layers": {"fc": [True, 4]}}, "layer fc: got [true, 4]"),
    ({"format": 1, "layers": {"fc": "w0a4"}}, "layer fc: weight bits 0 not supported"),
    ({"format": 1, "layers": {"fc.*": [4, 4]}}, "hand.json 'fc.*': did you mean fc?"),
])  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_selection(write(tmp_path, content)).resolve(LAYERS)
    assert message in str(error.value) and "\n" not in str(error.value)


def network() -> ir.Model:
    """Three layers: the ends have 8 bits only, the middle one 8, 4 and 3."""
    lines, tensor = [], "x"
    for index, (name, bits) in enumerate(
        (("first", "8"), ("mid.conv", "8, 4, 3"), ("last", "8"))
    ):
        count = bits.count(",") + 1
        steps = "{" + ", ".join(["0.1"] * count) + "}"
        lines += [
            f"s{index} = Constant <value = float[{count}, 1] {steps}> ()",
            f"v{index} = Constant <value = float[1, 1] {{0.1}}> ()",
            f"w{index} = Constant <value = float[2, 2] {{0.1, 0.2, 0.3, 0.1}}> ()",
            f'q{index} = qtool.FakeQuant <name = "{name}", role = "activation", '
            f"bits = [{bits}], signed = 0> ({tensor}, s{index})",
            f'u{index} = qtool.FakeQuant <name = "{name}", role = "weight", '
            f"bits = [{'4' if count > 1 else '8'}], signed = 1> (w{index}, v{index})",
            f"y{index} = MatMul (q{index}, u{index})",
        ]
        tensor = f"y{index}"
    header = '<ir_version: 10, opset_import: ["" : 21, "qtool" : 1]>'
    return graph(f"{header} g (float[N, 2] x) => (float[N, 2] y2) {{ {chr(10).join(lines)} }}")


def resolved(text: str) -> dict[tuple[str, str], tuple[int, ...]]:
    """Return the bits that `ResolveBits` leaves on every tensor."""
    model = network()
    ResolveBits(read_selection(text))(model)
    nodes = [node.attributes for node in model.graph if node.op_type == "FakeQuant"]
    return {
        (a.get_string("name", ""), a.get_string("role", "")): tuple(a.get_ints("bits", ()))
        for a in nodes
    }


def test_patterns_reach_the_graph_and_a_default_leaves_the_ends() -> None:
    bits = resolved("w4a4,mid.*=w4a3")
    assert bits["mid.conv", "activation"] == (3,)
    assert bits["first", "activation"] == bits["last", "weight"] == (8,)


@pytest.mark.parametrize(("text", "message"), [
    ("w4a4,f*=w4a4", "layer first: activation bits 4 were not trained; trained: 8"),
    ("mid.conv=w4a5", "layer mid.conv: activation bits 5 were not trained; trained: 8, 4, 3"),
    ("mid.cnov=w4a4", "unknown layer or pattern in --bits 'mid.cnov': did you mean mid.conv"),
])  # fmt: skip
def test_bits_that_a_layer_cannot_have_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        resolved(text)
    assert message in str(error.value)


def test_bops_of_a_list() -> None:
    asked = ("bops", "resnet18", "--input", "3x32x32", "--json", "--first-last", 8, "--bits")
    done = run_qtool(*asked, "w4a4,layer4.*=w2a3")
    assert done.code == 0, done.err
    layers = {name: found["bits"] for name, found in json.loads(done.out)["layers"].items()}
    inner = [bits for name, bits in layers.items() if name.startswith("layer4.")]
    assert inner and all(bits == [2, 3] for bits in inner)
    assert layers["conv1"] == [8, 8] and layers["layer1.0.conv1"] == [4, 4]
    refused = run_qtool(*asked, "layer5.*=w4a4")
    assert refused.code == 2 and "'layer5.*': did you mean layer" in refused.err


def test_reading_bits_needs_no_torch() -> None:
    code = (
        "import sys, qtool.core.selection; "
        "print({'torch', 'onnx', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_the_schema_describes_what_is_written_by_qtool_and_by_hand(searched_run: Path) -> None:
    content = json.loads((searched_run / "bits.json").read_text())
    for value in (content, BY_HAND, {"format": 1, "default": [4, 4]}):
        assert fits(value, SCHEMA, SCHEMA)
        selection_from_json(value, "x")
    assert set(content) <= set(SCHEMA["properties"])


@pytest.mark.parametrize("value", [
    {"layers": {}}, {"format": 1}, {"format": 2, "layers": {}}, {"format": 1, "default": "w4"},
    {"format": 1, "layers": {"fc": [4]}}, {"format": 1, "layers": {"fc": [4, 9]}},
    {"format": 1, "layers": {"fc": [4, 4, 4]}}, {"format": 1, "layers": []}, [],
])  # fmt: skip
def test_what_the_schema_refuses_the_reader_refuses(value: Any) -> None:
    assert not fits(value, SCHEMA, SCHEMA)
    if value:
        with pytest.raises(UserError):
            selection_from_json(value, "x")
