"""``FakeQuant(x, steps[n], bits=candidates)`` -> ``FakeQuant(x, steps[1], bits=[b])``.

One row of every bank is left: of norms and biases too (`passes.adaptive.norm_rows`), by the
rule of `qtool.core.choose`. Cases:
1. A selection names the layer, or a pattern of it matches: its input and weight quantizers
   keep those bits.
2. The default of a selection (``w4a4``): every other layer; the first and the last layer, and
   what reads the image, keep the bits they were trained with unless these are among their
   candidates.
3. No word about the layer: its first candidate.
4. Weights of 16 or 32 bits stay float (`passes.adaptive.freeze_weights`); an input of 16 or 32
   bits keeps the widest grid that was trained. Both are always among the candidates.
5. A layer that keeps its bits (attribute ``keeps``): its first candidate, unless it is named.
Refuses when the bits are not among the candidates, a name or pattern is about no layer, or
rows serve other bits only.
"""

from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.adaptive.norm_rows import NormRows, keep_row, norm_rows
from passes.conditions import ensure, several_widths, unpicked_rows
from passes.graph import FakeQuant, add_constant, as_fake_quant, fake_quants, operand
from passes.lower.moves import is_move
from qtool.core.choose import Candidates, choose, choose_rows, given_bits
from qtool.core.dialect import ACTIVATION_BITS_KEY
from qtool.core.grids import FLOAT_WIDTHS
from qtool.core.selection import Selection


@dataclass(frozen=True)
class ResolveBits(InPlacePass):
    """Leave one bit-width on every tensor, and one row of every norm."""

    selection: Selection = field(default_factory=Selection)

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place; raises before the first change."""
        views = fake_quants(model)
        layers = [view.name for view in views if view.role == "weight"]
        selection = self.selection.resolve(layers)
        ends = {*layers[:1], *layers[-1:]}
        ends |= {v.name for v in views if v.role == "activation" and _is_image(v.source)}
        chosen = {view.node: _bits(view, selection, view.name in ends) for view in views}
        norms = norm_rows(model)
        rows = _rows(norms, views, selection)
        modified = bool(norms)
        for norm, row in zip(norms, rows, strict=True):
            keep_row(model.graph, norm, row)
        for view in views:
            bits = chosen[view.node]
            if bits in FLOAT_WIDTHS and ACTIVATION_BITS_KEY not in view.node.metadata_props:
                # What the input was asked for: its grid does not say.
                asked = selection.of(view.name)
                wanted = asked.activation if asked is not None and asked.is_float else bits
                view.node.metadata_props[ACTIVATION_BITS_KEY] = str(wanted)
                modified = True
            if view.bits != (bits,):
                _keep(model.graph, view, bits)
                modified = True
        return PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Every tensor has one bit-width, every norm and bias one row."""
        ensure(self, several_widths(model))
        ensure(self, unpicked_rows(model))


def _is_image(value: ir.Value) -> bool:
    """True where `value` is the graph's input, moved or on a grid."""
    producer = value.producer()
    if producer is None:
        return value.is_graph_input()
    moved = is_move(producer) and producer.op_type != "Concat"
    known = moved or as_fake_quant(producer) is not None
    return known and _is_image(operand(producer, 0))


def _bits(view: FakeQuant, selection: Selection, is_end: bool) -> int:
    """Return the bits that `view` keeps; `selection` has names, no patterns."""
    chosen = selection.of(view.name)
    if chosen is None or view.role not in ("activation", "weight"):
        return view.bits[0]
    is_weight, may_differ = view.role == "weight", is_end and view.name not in selection.layers
    wanted = chosen.weight if is_weight else chosen.activation
    return choose(view.bits, wanted, is_weight, may_differ, view.name, view.keeps)


def _rows(norms: list[NormRows], views: list[FakeQuant], selection: Selection) -> list[int]:
    """Return the row of every norm; what is not known of the bits has been refused."""
    if not norms:
        return []
    weights = {view.name: view for view in views if view.role == "weight"}
    inputs = {view.name: view.bits for view in views if view.role == "activation"}
    layers = {
        name: Candidates(view.bits, inputs[name], view.keeps)
        for name, view in weights.items()
        if name in inputs
    }
    given = given_bits(layers, selection)
    serves = {norm.keys: norm.serves for norm in norms}
    found = {keys: choose_rows(keys, layers, given, serves[keys]) for keys in serves}
    return [found[norm.keys].get(norm.layer, found[norm.keys][""]) for norm in norms]


def _keep(graph: ir.Graph, view: FakeQuant, bits: int) -> None:
    row = view.bits.index(bits) if bits in view.bits else 0
    steps = add_constant(graph, f"{view.name}.{view.role}.step", view.steps[row : row + 1])
    view.node.replace_input_with(1, steps)
    view.node.attributes["bits"] = ir.AttrInt64s("bits", [bits])
    if view.zero_points:
        kept = ir.AttrInt64s("zero_points", [view.zero_points[row]])
        view.node.attributes["zero_points"] = kept
