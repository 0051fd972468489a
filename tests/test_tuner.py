"""`--tune N`: what is measured, what is kept, what is chosen; results never change."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tvm
from tiny_files import images, qdq
from tvm import relax

from passes.emit.tvm.cpu import tuner
from passes.emit.tvm.cpu.kernels.direct import DirectConv, Place, Tile
from passes.emit.tvm.cpu.kernels.epilogue import Form
from passes.emit.tvm.cpu.kernels.winograd import Winograd, strip_rows
from passes.emit.tvm.cpu.measure import Candidate, measure
from passes.emit.tvm.cpu.plan.plan import make_plan
from passes.emit.tvm.cpu.plan.tiles import variants
from passes.emit.tvm.cpu.tuner import Tuner, candidate, kernel_key, label
from passes.emit.tvm.cpu.tvm_module import _unit, emit_tvm
from passes.emit.tvm.cpu.vectors.units import vectors
from passes.emit.tvm.cpu_target import CpuTarget, cpu_target, host_target
from passes.emit.tvm.lowering_pipeline import compile_module
from passes.emit.tvm.tuning import TuneCache, TuneOptions
from passes.pipelines import import_qdq
from qtool.core.dialect import Program, read_program
from qtool.core.errors import UserError
from runtimes.reference import ReferenceRuntime

UNIT = vectors("avx512_vnni")
PLACE = Place(28 * 64, 64)
FORM = Form(zero=True, clip=False)
DIRECT = DirectConv(
    UNIT.name, 28, 28, 4, 1, 0, (3, 3), 16, (1, 1), (1, 1), PLACE, PLACE, PLACE,
    Tile(1, 1, 1), False, True, FORM,
)  # fmt: skip
FAST = Winograd(
    UNIT.name, 28, 28, 64, 4, PLACE, PLACE, PLACE, strip_rows(28, 28, 64), True, FORM
)
KERNELS = variants(DIRECT, FAST, 30 * 30 * 64, UNIT)


def program() -> Program:
    return read_program(import_qdq(ir.from_proto(onnx.shape_inference.infer_shapes(qdq()))))


class Clock:
    """Stands for `measure`: the last kernel is the fastest; may be interrupted."""

    def __init__(self, calls: int = 1000) -> None:
        self.measured: list[int] = []
        self.calls = calls

    def __call__(self, candidates: Sequence[Candidate], target: CpuTarget) -> list[float]:
        if len(self.measured) == self.calls:
            raise KeyboardInterrupt
        self.measured.append(len(candidates))
        return [float(len(candidates) - i) for i in range(len(candidates))]


def tuned(path: Path, trials: int, target: CpuTarget | None = None) -> tuple[Any, list[str]]:
    """Return the plan and what was said."""
    said: list[str] = []
    cpu = target or host_target()
    options = TuneOptions(trials, path)
    plan = tuner.tuned_plan(program(), vectors(_unit(cpu)), cpu, options, said.append)
    return plan, said


# Candidates


def test_the_rule_comes_first_and_winograd_is_tried_early() -> None:
    assert {type(kernel) for kernel in KERNELS[:2]} == {DirectConv, Winograd}
    labels = [label(kernel) for kernel in KERNELS]
    assert len(set(labels)) == len(labels) > 50
    assert variants(DIRECT, None, 30 * 30 * 64, UNIT)[0] in KERNELS[:2]


def test_the_key_is_what_kernels_have_in_common() -> None:
    key = kernel_key(KERNELS)
    assert kernel_key(KERNELS[::-1]) == key
    assert kernel_key(variants(DIRECT, None, 0, UNIT)) != key
    assert kernel_key(variants(replace(DIRECT, parallel=False), FAST, 0, UNIT)) == key
    other = variants(replace(DIRECT, dwords=15), FAST, 0, UNIT)
    assert kernel_key(other) != key


def test_groups_get_whole_blocks_only() -> None:
    grouped = replace(DIRECT, groups=2, group_bytes=32, outputs=3)
    tiles = {k.tile.vectors for k in variants(grouped, None, 1, UNIT) if hasattr(k, "tile")}
    assert tiles == {1, 3}


def test_pointers_have_the_bytes_of_the_real_arrays() -> None:
    plan = make_plan(program(), vectors(_unit(host_target())))
    checked = 0
    for step in plan.steps:
        if not isinstance(step.kernel, DirectConv | Winograd):
            continue
        found = candidate(step.kernel)
        assert found.bytes[-4:-1] == tuple(array.nbytes for array in step.constants[:3])
        assert found.bytes[-1] >= step.constants[3].nbytes
        x, y = plan.layouts[step.inputs[0].tensor], plan.layouts[step.output.tensor]
        assert found.bytes[0] <= x.bytes + 64 and found.bytes[-5] <= y.bytes + 64
        checked += 1
    assert checked == 2


# Choices


def test_a_cached_choice_is_taken_and_everything_else_is_missing(tmp_path: Path) -> None:
    cache, key = TuneCache(tmp_path / "t.json"), kernel_key(KERNELS)
    empty = Tuner(cache, "znver4", 8)
    assert empty(KERNELS) == KERNELS[0] and empty.missing == {key: tuple(KERNELS[:8])}
    cache.put("znver4", key, {"kernel": label(KERNELS[5]), "tried": 8})
    for trials, missing in ((0, {}), (8, {}), (9, {key: tuple(KERNELS[:9])})):
        full = Tuner(cache, "znver4", trials)
        assert full(KERNELS) == KERNELS[5] and full.missing == missing
    assert Tuner(cache, "znver3", 0)(KERNELS) == KERNELS[0]


@pytest.mark.parametrize(
    "result",
    [{}, {"kernel": "direct, 9 x 9 x 9, pixels first", "tried": 8}, {"kernel": 3, "tried": 8}],
)
def test_a_result_that_means_nothing_here_is_measured_again(
    result: dict[str, Any], tmp_path: Path
) -> None:
    cache = TuneCache(tmp_path / "t.json")
    cache.put("znver4", kernel_key(KERNELS), result)
    chosen = Tuner(cache, "znver4", 4)
    assert chosen(KERNELS) == KERNELS[0] and len(chosen.missing) == 1


def test_the_fastest_is_kept_but_noise_does_not_beat_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for times, best in (([5.0, 4.99, 5.0], 0), ([5.0, 5.0, 4.0], 2)):
        cache = TuneCache(tmp_path / f"{best}.json")
        search = Tuner(cache, "znver4", 3)
        search(KERNELS)
        monkeypatch.setattr(tuner, "measure", lambda c, t, times=times: times)
        search.search(kernel_key(KERNELS), host_target())
        assert Tuner(TuneCache.load(cache.path), "znver4", 3)(KERNELS) == KERNELS[best]


# A whole network


def test_an_interrupted_search_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.json"
    monkeypatch.setattr(tuner, "measure", Clock(calls=1))
    with pytest.raises(KeyboardInterrupt):
        tuned(path, 2)
    assert len(TuneCache.load(path).entries[host_target().mcpu]) == 1
    clock = Clock()
    monkeypatch.setattr(tuner, "measure", clock)
    plan, said = tuned(path, 2)
    assert len(clock.measured) == 1
    assert len(said) == 1 and said[0].startswith("tuning 1/1 ")
    again, silent = tuned(path, 2)
    assert silent == [] and len(clock.measured) == 1
    kernels = [[step.kernel for step in p.steps] for p in (plan, again)]
    assert kernels[0] == kernels[1]


def test_another_cpu_is_refused_unless_all_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, path = host_target(), tmp_path / "t.json"
    x86 = host.triple.startswith("x86_64")
    name = next(n for n in ("x86-64", "cortex-a53") if (n == "x86-64") == x86)
    other = cpu_target(name)
    with pytest.raises(UserError) as caught:
        tuned(path, 2, other)
    text = str(caught.value)
    assert "\n" not in text and "--tune 0" in text and str(path) in text
    assert f"this machine, which is {host.mcpu}, not {other.mcpu}: 2 kernels" in text
    assert tuned(path, 0, other)[1] == [] and not path.exists()
    monkeypatch.setattr(tuner, "measure", Clock())
    monkeypatch.setattr(tuner, "_refuse_other", lambda *_: None)
    first, _ = tuned(path, 2, other)
    monkeypatch.undo()
    second, said = tuned(path, 2, other)
    assert said == [] and [s.kernel for s in first.steps] == [s.kernel for s in second.steps]


def test_tuned_networks_give_the_same_results(tmp_path: Path) -> None:
    net, target, path = program(), host_target(), tmp_path / "t.json"
    said: list[str] = []
    module = emit_tvm(net, target, tune=TuneOptions(3, path), progress=said.append)
    assert sum(text.startswith("tuning ") for text in said) == 2
    for result in TuneCache.load(path).entries[target.mcpu].values():
        assert result["tried"] <= 3 and 0 < result["us"] <= result["rule_us"] < 1e5
    machine = relax.VirtualMachine(compile_module(module.ir, target.llvm()), tvm.cpu())
    x = images(1)
    got = machine["main"](tvm.runtime.tensor(x)).numpy()
    assert np.array_equal(got, ReferenceRuntime(net).run(x))


def test_more_work_takes_more_time() -> None:
    """A hundred times the channels: not less than ten times as long."""
    unit = vectors(_unit(host_target()))
    flat = Place(64 * 4096, 4096)
    small = DirectConv(
        unit.name, 4, 4, 1, 1, 0, (1, 1), 8, (1, 1), (1, 1), flat, flat, flat, Tile(1, 2, 1),
        False, True, FORM,
    )  # fmt: skip
    times = measure([candidate(small), candidate(replace(small, dwords=800))], host_target())
    assert 0 < 10 * times[0] < times[1]
