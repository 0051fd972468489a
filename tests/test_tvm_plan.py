"""What the plan of a TVM module decides, and that every decision is exact."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Net, exact, mobilenet_v2, resnet

from passes.emit.tvm.cpu.kernels.depthwise import DepthwiseConv
from passes.emit.tvm.cpu.kernels.direct import DirectConv
from passes.emit.tvm.cpu.kernels.elementwise import AddCodes, MulCodes
from passes.emit.tvm.cpu.kernels.tables import LookUp
from passes.emit.tvm.cpu.plan.memory import SLACK, Life, arrange
from passes.emit.tvm.cpu.plan.plan import Plan
from qtool.core.dialect import Concat, FloatGemm, MaxPool, Pad, Slice, Transpose, Upsample


def kernels(plan: Plan) -> Counter[str]:
    return Counter(type(step.kernel).__name__ for step in plan.steps)


def layer_of(plan: Plan, tensor: str) -> str:
    """The layer whose step writes a tensor."""
    return next(s.layer for s in plan.steps if s.output.tensor == tensor)


# Fusions


def test_hardswish_is_one_look_up() -> None:
    net = Net((8, 6, 6))
    net.hardswish(
        net.op(MaxPool, "x", (8, 6, 6), kernel=(1, 1), strides=(1, 1), pads=(0,) * 4)
    )
    plan = net.plan()
    assert kernels(plan)["LookUp"] == 1 and MulCodes.__name__ not in kernels(plan)
    assert plan.fused == ("t1", "t2")
    assert exact(net)["fused_tensors"] == ["t1", "t2"]


def test_a_convolution_takes_hardswish_into_its_epilogue() -> None:
    net = Net((8, 6, 6))
    net.conv(net.hardswish(net.conv("x", 8, 1)), 8, 1)
    plan = net.plan()
    assert not {LookUp.__name__, MulCodes.__name__} & set(kernels(plan))
    assert plan.fused == ("t0", "t1", "t2")


@pytest.mark.parametrize("first", [False, True])
def test_an_addition_goes_into_the_later_convolution(first: bool) -> None:
    net = Net((8, 5, 6))
    early, late = net.conv("x", 8, 1), net.conv("x", 8, 3)
    net.lookup(net.add(*((late, early) if first else (early, late))))
    plan = net.plan()
    assert layer_of(plan, "t3") == "layer1" and plan.fused == (late, "t2")
    step = next(s for s in plan.steps if s.output.tensor == "t3")
    assert [operand.tensor for operand in step.inputs] == ["<pixels>", early]
    # The grids of the operands differ, so that the wrong order is not exact.
    exact(net)


@pytest.mark.parametrize("shape", [(8, 1, 1), (8, 5, 1), (8, 1, 6), (1, 5, 6)])
def test_an_addition_that_broadcasts_stays_by_itself(shape: tuple[int, ...]) -> None:
    net = Net((8, 5, 6))
    small = net.op(Slice, "x", shape, starts=(0,) * 3, steps=(1,) * 3)
    net.add(net.conv("x", 8, 1), net.conv(small, shape[0], 1))
    net.add(net.conv("t3", 8, 1), small)
    assert "t1" in net.plan().tensors and "t4" in net.plan().tensors
    exact(net)


def test_additions_that_no_epilogue_can_take() -> None:
    net = Net((8, 4, 4))
    own = net.conv("x", 8, 1)
    net.add(own, own)
    two = net.conv("t1", 8, 1)  # has a second reader
    net.mul(two, net.add("t1", two))
    net.add("t4", net.lookup("t4"))
    plan = net.plan()
    # The first and last are functions of one tensor: tables, and the first is fused.
    assert kernels(plan)[AddCodes.__name__] == 1 and kernels(plan)[LookUp.__name__] == 1
    exact(net)


def test_a_table_is_not_fused_where_a_tensor_has_two_readers() -> None:
    net = Net((8, 4, 4))
    both = net.conv("x", 8, 1)
    net.mul(net.conv(net.lookup(both), 8, 3), both)
    plan = net.plan()
    assert "t0" in plan.tensors and kernels(plan)["LookUp"] == 1
    exact(net)


@pytest.mark.parametrize("last", range(5))
def test_the_output_is_never_fused_away(last: int) -> None:
    net = Net((8, 4, 4), raw=False)
    first = net.conv(net.input, 8, 1)
    net.add(net.conv(net.lookup(first), 8, 3), net.input)
    output = f"t{last}"
    assert output in net.plan(output).tensors and net.plan(output).result == output
    if last in (1, 3):
        exact(net, output, batch=2)


# Memory

lives = st.builds(
    lambda size, first, length: Life(size, first, first + length),
    st.integers(1, 5000), st.integers(0, 12), st.integers(0, 6),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(lives, min_size=1, max_size=14))
def test_no_two_live_tensors_overlap(found: list[Life]) -> None:
    named = {f"t{i}": life for i, life in enumerate(found)}
    offsets, total = arrange(named)
    for a, x in named.items():
        assert offsets[a] % 64 == 0 and offsets[a] + x.bytes + SLACK <= total
        for b, y in named.items():
            if a < b and x.first <= y.last and y.first <= x.last:
                before = offsets[a] + x.bytes + SLACK <= offsets[b]
                assert before or offsets[b] + y.bytes + SLACK <= offsets[a]
    busiest = max(sum(x.bytes for x in found if x.first <= now <= x.last) for now in range(20))
    assert busiest <= total <= sum(x.bytes + SLACK + 63 for x in found)


def test_mobilenet_needs_little_more_than_its_largest_pair() -> None:
    plan = mobilenet_v2(224).plan()
    assert plan.largest_pair == 96 * 112 * 112 + 96 * 56 * 56
    assert arrange(plan.lives())[1] <= 1.3 * plan.largest_pair


def test_what_a_step_reads_and_writes_is_alive() -> None:
    plan = mobilenet_v2(64).plan()
    found = plan.lives()
    for index, step in enumerate(plan.steps):
        for operand in (*step.inputs, step.output):
            if operand.tensor in plan.layouts:
                life = found[operand.tensor]
                assert life.first <= index <= life.last
                assert 0 <= operand.offset < life.bytes == plan.layouts[operand.tensor].bytes
    assert found[plan.output].last == len(plan.steps)


# Kernels


def test_equal_specifications_are_compiled_once() -> None:
    net = resnet((64, 64, 64), 32)
    plan = net.plan()
    convolutions = [s.kernel for s in plan.steps if s.macs]
    # Stem, two with and two without an addition in each stage, a strided one, two shortcuts.
    assert len(convolutions) == 1 + 3 * 4 + 2 + 1
    assert len(set(convolutions)) < len(convolutions)
    stage = [s.kernel for s in plan.steps if s.macs][1:5]
    assert stage[0] == stage[2] and stage[1] == stage[3] and stage[0] != stage[1]


def test_one_tensor_padded_with_two_codes() -> None:
    net = Net((8, 5, 6))
    parts = [
        net.conv("x", 8, 3), net.conv("x", 8, 5, pads=(0, 2, 4, 2)),
        net.conv("x", 8, 3, x=net.ops[0].x),
    ]  # fmt: skip
    assert net.ops[0].x.zero_point != net.ops[1].x.zero_point
    net.add(net.add(parts[0], parts[1]), parts[2])
    net.conv("t3", 8, 3)
    plan = net.plan()
    halos = [s.output.tensor for s in plan.steps if type(s.kernel).__name__ == "FillHalo"]
    assert len(halos) == 3 and len(set(halos)) == 3
    exact(net)


def test_depthwise_and_grouped_kernels_are_chosen() -> None:
    net = Net((16, 6, 6))
    net.conv("x", 16, 3, groups=16)
    net.conv("t0", 32, 3, groups=16)
    assert [type(s.kernel) for s in net.plan().steps if s.macs] == [DepthwiseConv, DirectConv]


# Fallbacks


def test_fallbacks_say_why_and_are_exact() -> None:
    net = Net((6, 4, 6))
    conv = net.conv("x", 6, 3)
    turned = net.op(Transpose, conv, (6, 6, 4), perm=(0, 1, 3, 2))
    net.op(MaxPool, turned, (6, 9, 7), kernel=(3, 3), strides=(1, 1), pads=(2, 2, 3, 3))
    wide = net.reshape("t2", 2, 3, 9, 7)
    net.lookup(wide)
    net.reshape("t4", 6, 9, 7)
    net.mul("t5", net.conv("t5", 1, 1))
    net.reshape("t7", 9, 6, 7)
    net.op(Upsample, "t8", (18, 6, 14), factors=(2, 1, 2))
    net.op(Slice, "t9", (6, 5, 14), starts=(1, 1, 0), steps=(3, 1, 1))
    net.gemm(net.flatten("t10"), 4)
    facts = exact(net, batch=3)
    found = {f["layer"]: (f["operator"], f["reason"]) for f in facts["fallbacks"]}
    moved = "pixels become channels, or channels pixels"
    assert found == {
        "layer1": ("Transpose", "no vector kernel"),
        "layer2": ("MaxPool", "kernel (3, 3) with pads (2, 2, 3, 3)"),
        "layer3": ("Reshape", "tensors of 5 dimensions"),
        "layer4": ("Lookup", "tensors of 5 dimensions"),
        "layer5": ("Reshape", "tensors of 5 dimensions"),
        "layer7": ("Mul", "channels are broadcast"),
        "layer8": ("Reshape", moved),
        "layer9": ("Upsample", "channels are repeated"),
        "layer10": ("Slice", "channels are sliced with a step"),
        "layer11": ("Reshape", moved),
    }


def test_an_input_of_other_dimensions() -> None:
    for shape, raw in (((3, 5), False), ((2, 3, 2, 2), True)):
        net = Net(shape, raw=raw)
        net.gemm(net.flatten(net.lookup(net.input)), 4)
        facts = exact(net, batch=2)
        assert {f["operator"] for f in facts["fallbacks"]} >= {"Lookup", "Reshape"}


# Shapes


def test_convolutions_of_every_kind() -> None:
    net = Net((3, 12, 11), raw=False)
    net.conv(net.input, 8, 3)
    net.conv("t1", 16, 3, groups=8, pads=(0, 1, 2, 1))  # depth multiplier 2
    net.conv("t2", 16, 3, groups=4)  # ResNeXt's: 4 outputs a group
    net.conv("t3", 32, 1, groups=4)  # 8 outputs
    net.conv("t4", 96, 3, groups=4, dilations=(2, 1), pads=(2, 1, 2, 1))  # 24 outputs
    net.conv("t5", 13, 3, dilations=(1, 3))
    net.conv("t6", 13, 3, groups=13, dilations=(2, 2))
    net.conv("t7", 13, 5, groups=13, strides=(1, 2))
    net.conv("t8", 7, 1, strides=(3, 2))
    net.conv("t9", 5, 3, strides=(1, 4), pads=(3, 0, 0, 2))
    assert exact(net, batch=3)["fallbacks"] == []


def test_one_channel_and_one_pixel() -> None:
    net = Net((1, 5, 6), raw=False)
    net.conv(net.input, 1)
    net.conv("t1", 1, 5, dilations=(2, 2), pads=(4,) * 4)
    net.conv("t2", 3, 3, strides=(9, 9))
    net.conv("t3", 17, 3)
    net.add("t4", net.conv("t4", 17, 1))
    net.average("t6")
    net.conv(net.reshape(net.gemm(net.reshape("t7", 17), 5), 5, 1, 1), 4, 3)
    assert net.shapes["t3"] == (3, 1, 1)
    assert exact(net, batch=2)["fallbacks"] == []


def test_reshapes_between_ranks() -> None:
    net = Net((7,), raw=False)
    wide = net.reshape(net.gemm(net.input, 6), 6, 1, 1)
    pair = net.op(Concat, (wide, wide), (6, 2, 1), axis=2)
    net.mul(net.conv(pair, 6, 1), wide)
    net.reshape(net.average("t5"), 6)
    net.gemm(net.reshape("t7", 6), 5)
    facts = exact(net, batch=2)
    assert facts["fallbacks"] == []
    # Layers read the same bytes under another name; others get a copy of their rank.
    places = facts["trace"]
    assert places["t8"]["offset"] == places["t7"]["offset"]
    assert places["t2"]["offset"] != places["t1"]["offset"]


def test_codes_that_only_move() -> None:
    net = Net((20, 7, 5))
    part = net.op(Slice, "x", (13, 3, 2), starts=(5, 1, 1), steps=(1, 2, 3))
    net.op(Pad, part, (16, 5, 6), before=(2, 1, 3), code=77)
    net.op(Concat, ("t1", "t1"), (16, 10, 6), axis=2)
    net.op(Concat, ("t2", "t2", "t2"), (16, 10, 18), axis=3)
    net.op(Upsample, "t3", (16, 20, 54), factors=(1, 2, 3))
    net.average(net.op(Concat, ("t4", "t4"), (32, 20, 54), axis=1))
    assert exact(net, batch=2)["fallbacks"] == []


def test_no_constants_at_all() -> None:
    net = Net((3, 6, 6))
    net.op(MaxPool, "x", (3, 3, 3), kernel=(2, 2), strides=(2, 2), pads=(0,) * 4)
    exact(net, batch=3)


def test_float_logits() -> None:
    net = Net((5, 4, 4))
    net.gemm(net.reshape(net.average(net.conv("x", 21)), 21), 11, FloatGemm)
    facts = exact(net, batch=3)
    assert facts["fallbacks"] == [] and facts["float_tensors"] == []
