"""Every operator of the dialect is known everywhere; one that is not, is refused everywhere.

A new `Op` fails here until it has a reader, validation, a reference, a portable and a GPU
kernel, a Triton launch, both ONNX forms, both Relay forms and a place in the fuzzer.
"""

import dataclasses
import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Collection
from functools import cache
from importlib.util import find_spec

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import graph
from fuzz_check import lowered
from programs import everything

from passes.emit.onnx import onnx_qdq, onnx_qop
from passes.emit.relay import emit as relay
from passes.emit.tvm import te_kernels
from passes.emit.tvm.cuda import plan as gpu_plan
from qtool.core import dialect, validate_program
from qtool.core.dialect import (
    Add,
    Concat,
    Grid,
    Island,
    Lookup,
    Op,
    Pad,
    Program,
    Quantize,
    operators,
    ops,
    read_program,
)
from qtool.core.errors import UnsupportedError, UserError
from qtool.core.validate_program import check_program
from qtool.export.validate.graph import check_graph
from qtool.export.validate.grids import GRIDS
from qtool.export.validate.operators import CONTRIB
from runtimes import reference

# Of `make test`'s own random networks, without running them.
SEEDS, ISLAND_SEEDS = range(40), range(3000, 3020)
# In how many networks of these an operator must be, at least.
ENOUGH = 4


def kinds() -> list[type[Op]]:
    """Every operator that a module of the dialect has."""
    found: set[type[Op]] = set()
    for info in pkgutil.iter_modules(dialect.__path__, f"{dialect.__name__}."):
        values = vars(importlib.import_module(info.name)).values()
        found |= {v for v in values if isinstance(v, type) and issubclass(v, Op)}
    return sorted(found - {Op}, key=lambda kind: kind.__name__)


def nodes(kind: type[Op]) -> list[str]:
    """The node types that are read as `kind`."""
    return [name for name, reader in operators.READERS.items() if kind in reader.makes]


def spelled_in(table: object, kind: type[Op]) -> bool:
    return bool(nodes(kind)) and all(name in table for name in nodes(kind))  # type: ignore[operator]


def known_to_files(kind: type[Op]) -> bool:
    """True where a file's nodes have a schema, and their grids are checked."""
    return bool(nodes(kind)) and all(
        (name in CONTRIB or onnx.defs.has(name)) and (name in GRIDS or not has_grids(name))
        for name in nodes(kind)
    )


def has_grids(name: str) -> bool:
    if name in CONTRIB:
        return True
    return any("_scale" in formal.name for formal in onnx.defs.get_schema(name).inputs)


@cache
def drawn() -> Counter[type[Op]]:
    """In how many random networks every operator is."""
    found: Counter[type[Op]] = Counter()
    for seed in (*SEEDS, *ISLAND_SEEDS):
        try:
            program = read_program(lowered(seed, islands=seed in ISLAND_SEEDS)[0])
        except UnsupportedError as error:
            assert "ONNX Runtime takes 2^-32 to 256" in str(error)  # as in test_fuzz
            continue
        found.update({type(op) for op in program.ops})
    return found


PLACES: dict[str, Callable[[type[Op]], bool]] = {
    "reader": lambda kind: bool(nodes(kind)),
    "validation of programs": lambda kind: kind in validate_program.CHECKS,
    "validation of files": known_to_files,
    "reference": lambda kind: kind in reference.OPERATORS,
    "portable kernel": lambda kind: kind in te_kernels.KERNELS,
    "GPU kernel": lambda kind: kind in gpu_plan.KERNELS,
    "Relay": lambda kind: kind in relay.EXACT.operators,
    "Relay, qnn": lambda kind: kind in relay.QNN.operators,
    "ONNX, QDQ form": lambda kind: spelled_in(onnx_qdq.NODES, kind),
    "ONNX, operator form": lambda kind: spelled_in(onnx_qop.NODES, kind),
    "fuzzer": lambda kind: drawn()[kind] >= ENOUGH,
}


def triton_operators() -> Collection[type[Op]]:
    from runtimes.triton.operators import OPERATORS

    return OPERATORS


if find_spec("triton") is not None:  # extra gpu
    PLACES["Triton"] = lambda kind: kind in triton_operators()


def missing(kind: type[Op]) -> list[str]:
    """Where `kind` is not known."""
    return [place for place, knows in PLACES.items() if not knows(kind)]


@dataclasses.dataclass(frozen=True)
class MadeUp(Op):
    """An operator that nothing but its class exists of."""


def test_every_operator_is_known_everywhere() -> None:
    assert len(kinds()) == 16
    assert {kind.__name__: missing(kind) for kind in kinds() if missing(kind)} == {}


def test_a_made_up_operator_is_found_and_known_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MadeUp not in kinds()
    monkeypatch.setattr(ops, "MadeUp", MadeUp, raising=False)
    assert [kind for kind in kinds() if missing(kind)] == [MadeUp]
    assert missing(MadeUp) == list(PLACES)


TABLES = {
    "validation of programs": (validate_program.CHECKS, Add),
    "validation of files": (GRIDS, "QLinearAdd"),
    "reference": (reference.OPERATORS, Add),
    "portable kernel": (te_kernels.KERNELS, Add),
    "GPU kernel": (gpu_plan.KERNELS, Add),
    "Relay": (relay.EXACT.operators, Add),
    "Relay, qnn": (relay.QNN.operators, Add),
    "ONNX, QDQ form": (onnx_qdq.NODES, "QLinearAdd"),
}


@pytest.mark.parametrize("place", TABLES)
def test_an_operator_left_out_of_one_table_is_found(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, key = TABLES[place]
    monkeypatch.delitem(table, key)
    assert missing(Add) == [place]


def test_what_is_read_is_what_the_reader_says() -> None:
    model = lowered(3)[0]
    made = {op.output: type(op) for op in read_program(model).ops}
    seen = [made[n.outputs[0].name] for n in model.graph if n.outputs[0].name in made]
    assert len(seen) > 5
    for node in model.graph:
        kind = made.get(str(node.outputs[0].name))
        if kind is not None and node.op_type != "Clip":
            assert kind in operators.READERS[node.op_type].makes


def test_every_operator_of_onnx_runtime_has_its_grids_checked() -> None:
    assert set(CONTRIB) <= set(GRIDS)


# What is not known is an error


def made_up_program() -> Program:
    quantize = Quantize("q", "q", ("x",), Grid(np.float32(1), 0), 0, 255, (4,))
    op = MadeUp("who", "t", ("q",), Grid(np.float32(1), 0), 0, 255, (4,))
    return Program("x", (4,), "float32", "y", "t", op.grid, (quantize, op), {})


def test_a_made_up_operator_is_refused_by_name() -> None:
    program = made_up_program()
    with pytest.raises(UnsupportedError, match="node who: unknown operator MadeUp"):
        check_program(program)
    with pytest.raises(TypeError, match="who: MadeUp has no reference"):
        reference.execute(program.ops[1], [np.zeros((1, 4), np.uint8)])
    with pytest.raises(TypeError, match="who: MadeUp has no TVM kernel"):
        te_kernels.kernel(program.ops[1])
    with pytest.raises(TypeError, match="who: MadeUp has no Relay form"):
        relay.adapter(relay.EXACT, program.ops[1])
    pytest.importorskip("triton", reason="Triton is not installed: extra gpu")
    from runtimes.triton.operators import planned

    with pytest.raises(TypeError, match="who: MadeUp has no Triton kernel"):
        planned(program.ops[1], None)  # type: ignore[arg-type]


UNKNOWN = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 4] x) => (float[N, 4] y) <float s = {0.5}, uint8 z = {0}> {
 q = QuantizeLinear(x, s, z)
 t = MaxUnpool(q)
 y = DequantizeLinear(t, s, z) }"""


def test_a_node_that_is_not_of_the_dialect_is_refused_by_name() -> None:
    model = ir.from_proto(onnx.parser.parse_model(UNKNOWN))
    model.graph[1].name = "who"
    model.graph[0].outputs[0].shape = model.graph.inputs[0].shape
    with pytest.raises(UnsupportedError, match="node who: MaxUnpool is not in the integer"):
        read_program(model)
    with pytest.raises(UnsupportedError, match="node who: MaxUnpool has no QDQ form"):
        onnx_qdq.emit_onnx_qdq(model, {})
    with pytest.raises(UnsupportedError, match="node who: MaxUnpool has no operator form"):
        onnx_qop.emit_onnx_qop(model, {})


def test_a_file_with_an_operator_that_does_not_exist_is_refused() -> None:
    proto = onnx.parser.parse_model(UNKNOWN.replace("MaxUnpool", "Invented"))
    with pytest.raises(UserError, match=r"\(Invented\): opset 21 has no such operator"):
        check_graph(proto)


def test_an_island_has_no_kernel_but_a_reason() -> None:
    island = read_program(lowered(3001, islands=True)[0]).islands()[0]
    with pytest.raises(UnsupportedError, match=r"in floating point .*--target onnx can hold"):
        te_kernels.kernel(island)
    for form in (relay.EXACT, relay.QNN):
        with pytest.raises(UnsupportedError, match=r"the Relay target does not hold"):
            relay.adapter(form, island)(island, None, [])


# Grids of operators that only ONNX Runtime has


@pytest.mark.parametrize("broken", ["a", "b", "y"])
def test_the_grids_of_a_concat_are_checked(broken: str) -> None:
    scales = {name: -0.5 if name == broken else 0.5 for name in "aby"}
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (uint8[N, 4] p, uint8[N, 4] q) => (uint8[N, 8] r)
        <float a = {{{scales["a"]}}}, float b = {{{scales["b"]}}},
         float y = {{{scales["y"]}}}, uint8 z = {{0}}>
        {{ r = com.microsoft.QLinearConcat<axis = 1>(y, z, p, a, z, q, b, z) }}"""
    )
    with pytest.raises(UserError, match=f"scale {broken} is not finite and positive"):
        check_graph(proto)
    del proto.graph.node[0].input[7:]
    with pytest.raises(UserError, match="7 inputs; it takes 2, and 3 a tensor"):
        check_graph(proto)


def test_the_grids_of_an_average_pool_are_checked() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (uint8[N, 1, 4, 4] p) => (uint8[N, 1, 2, 2] r) <float a = {0.0}, uint8 z = {0}>
        { r = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2]>(p, a, z, a, z) }"""
    )
    with pytest.raises(UserError, match="scale a is not finite and positive"):
        check_graph(proto)


# Programs whose operators do not fit each other


def replaced(program: Program, index: int, **fields: object) -> Program:
    changed = dataclasses.replace(program.ops[index], **fields)  # type: ignore[arg-type]
    kept = (*program.ops[:index], changed, *program.ops[index + 1 :])
    return dataclasses.replace(program, ops=kept)


def test_a_shape_that_an_operator_does_not_make_is_refused() -> None:
    program = everything()
    check_program(program)
    assert {type(op) for op in program.ops} == {*kinds()} - {Island}
    for index, op in enumerate(program.ops):
        # How far a border goes, only the shape says.
        last = 1 if isinstance(op, Pad) else 99 * op.shape[-1]
        wrong = replaced(program, index, shape=(*op.shape[:-1], last))
        with pytest.raises(UserError, match=f"{op.name}: (result of shape|input of)"):
            check_program(wrong)


def test_a_tensor_too_many_is_refused() -> None:
    program = everything()
    for index, op in enumerate(program.ops):
        wrong = replaced(program, index, inputs=(*op.inputs, op.inputs[0]))
        words = "result of shape" if isinstance(op, Concat) else "inputs; . are needed"
        with pytest.raises(UserError, match=words):
            check_program(wrong)


def test_a_tensor_that_comes_later_is_refused() -> None:
    program = everything()
    wrong = replaced(program, 1, inputs=(program.ops[-1].output,))
    with pytest.raises(UserError, match="no operator computes its input"):
        check_program(wrong)
    floats = replaced(program, 1, inputs=("x",))
    with pytest.raises(UserError, match="no operator computes its input x"):
        check_program(floats)


def test_an_island_may_read_the_float_input_itself() -> None:
    model = graph(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 4] x) => (float[N, 4] y)
        <float s = {0.125}, uint8 z = {128}>
        { e = Exp(x)  q = QuantizeLinear(e, s, z)  y = DequantizeLinear(q, s, z) }"""
    )
    for node in list(model.graph)[:2]:
        node.metadata_props[dialect.ISLAND_KEY] = "q"
    program = read_program(model)
    check_program(program)
    (island,) = program.islands()
    assert island.x == (None,)
    wrong = replaced(program, 0, x=(island.grid,))
    with pytest.raises(UserError, match="no operator computes its input x"):
        check_program(wrong)
    with pytest.raises(UserError, match="result of shape"):
        check_program(replaced(program, 0, x=(None, None)))


def test_windows_and_tables_of_pads_stay() -> None:
    program = everything()
    index = next(i for i, op in enumerate(program.ops) if isinstance(op, Pad | Lookup))
    with pytest.raises(UserError, match="window 9 to 8 is empty"):
        check_program(replaced(program, index, lo=9, hi=8))
