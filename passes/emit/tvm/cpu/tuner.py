"""``--tune N``: the fastest of up to N kernels of every convolution, measured on this machine.

Kernels of one layer differ in tile, order of loops and method; their results are the same, so
that a wrong choice costs time only. Results are kept layer by layer in `TuneCache`, under what
a layer's kernels have in common, and looked up there first: what was measured before an
interruption is not measured again, and equal caches make equal choices.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from passes.emit.tvm.cpu.kernels.direct import DirectConv
from passes.emit.tvm.cpu.kernels.epilogue import RECORD_BYTES
from passes.emit.tvm.cpu.kernels.winograd import Winograd
from passes.emit.tvm.cpu.measure import Candidate, measure
from passes.emit.tvm.cpu.plan.plan import Plan, make_plan
from passes.emit.tvm.cpu.plan.tiles import Convolution
from passes.emit.tvm.cpu.vectors.base import Vectors
from passes.emit.tvm.cpu.vectors.units import vectors
from passes.emit.tvm.cpu_target import CpuTarget, host_target
from passes.emit.tvm.tuning import TuneCache, TuneOptions
from qtool.core.dialect import Program
from qtool.core.errors import UserError

# Less than this is noise: the rule's kernel stays.
_CLEARLY = 0.99
_CHOSEN = ("tile", "weights_outer", "parallel")


class Tuner:
    """Takes kernels by what a cache holds, the rule's where it holds nothing.

    Args:
        cache: results.
        mcpu: the CPU that they were measured on.
        trials: how many kernels of a layer should have been measured.
    """

    def __init__(self, cache: TuneCache, mcpu: str, trials: int) -> None:
        self._cache, self._mcpu, self._trials = cache, mcpu, trials
        self.missing: dict[str, tuple[Convolution, ...]] = {}

    def __call__(self, kernels: Sequence[Convolution]) -> Convolution:
        """Return one of `kernels`; what is to be measured is in `missing` then."""
        key, tried = kernel_key(kernels), tuple(kernels[: self._trials])
        found = self._cache.get(self._mcpu, key) or {}
        named = {label(kernel): kernel for kernel in kernels}
        chosen, before = named.get(str(found.get("kernel"))), found.get("tried")
        if chosen is None or not isinstance(before, int) or before < len(tried):
            self.missing[key] = tried
        return kernels[0] if chosen is None else chosen

    def search(self, key: str, target: CpuTarget) -> None:
        """Measure the kernels of a layer and keep the result, in the file too."""
        kernels = self.missing[key]
        times = measure([candidate(kernel) for kernel in kernels], target)
        best = min(range(len(kernels)), key=lambda i: times[i])
        if times[best] > times[0] * _CLEARLY:
            best = 0
        result = {
            "kernel": label(kernels[best]), "us": round(times[best], 3),
            "rule": label(kernels[0]), "rule_us": round(times[0], 3), "tried": len(kernels),
        }  # fmt: skip
        self._cache.put(self._mcpu, key, result)
        self._cache.save()


def tuned_plan(
    program: Program,
    unit: Vectors,
    target: CpuTarget,
    options: TuneOptions,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Return the plan of `program` with the fastest kernels, measured where need be.

    Args:
        program: the integer dialect.
        unit: vector unit of the CPU.
        target: the CPU.
        options: how many kernels of a layer to measure, and where results are kept.
        progress: told of each layer that is measured.

    Raises:
        UserError: kernels must be measured, and `target` is not this machine's CPU.
    """
    tuner = Tuner(TuneCache.load(options.cache), target.mcpu, options.trials)
    plan = make_plan(program, unit, tuner)
    missing = list(tuner.missing)
    if not missing or not options.trials:
        return plan
    _refuse_other(target, len(missing), options)
    for index, key in enumerate(missing):
        if progress is not None:
            name = tuner.missing[key][0].name()
            progress(f"tuning {index + 1}/{len(missing)} {name}")
        tuner.search(key, target)
    return make_plan(program, unit, tuner)


def _refuse_other(target: CpuTarget, count: int, options: TuneOptions) -> None:
    """Refuse to measure for a CPU that is not this machine's."""
    host = host_target()
    if target.mcpu != host.mcpu or not set(target.features) <= set(host.features):
        raise UserError(
            f"--tune measures on this machine, which is {host.mcpu}, not {target.mcpu}: "
            f"{count} kernels are not in {options.cache}; tune on such a machine, or use "
            "--tune 0"
        )


def kernel_key(kernels: Sequence[Convolution]) -> str:
    """Return what the kernels of a layer have in common, the name of its results."""
    direct = next(kernel for kernel in kernels if isinstance(kernel, DirectConv))
    fields = {name: value for name, value in asdict(direct).items() if name not in _CHOSEN}
    fields["winograd"] = any(isinstance(kernel, Winograd) for kernel in kernels)
    return json.dumps(fields, separators=(",", ":"))


def label(kernel: Convolution) -> str:
    """Return what tells a kernel from the others of its layer."""
    if isinstance(kernel, Winograd):
        return f"winograd, strips of {kernel.strip}"
    tile, outer = kernel.tile, "weights" if kernel.weights_outer else "pixels"
    return f"direct, {tile.rows} x {tile.columns} x {tile.vectors}, {outer} first"


def candidate(kernel: Convolution) -> Candidate:
    """Return what `measure` needs: the kernel on one thread, and what its pointers need."""
    n = vectors(kernel.isa).lanes
    x, outputs, weights, channels = (
        _winograd_bytes(kernel, n)
        if isinstance(kernel, Winograd)
        else _direct_bytes(kernel, n)
    )
    places = (kernel.other, kernel.y) if kernel.form.residual else (kernel.y,)
    size = 4 if kernel.form.floats else 1
    images = [
        (kernel.height - 1) * p.row + (kernel.width - 1) * p.pixel + outputs * n * size
        for p in places
    ]
    found = (x, *images, weights, 4 * channels, 4 * channels, RECORD_BYTES)
    return Candidate(replace(kernel, parallel=False), found, len(found) - 4)


def _direct_bytes(spec: DirectConv, lanes: int) -> tuple[int, int, int, int]:
    """Return bytes of input, vectors of outputs, bytes of weights, length of constants."""
    (sy, sx), (dy, dx), x = spec.strides, spec.dilations, spec.x
    down = (spec.height - 1) * sy + (spec.taps[0] - 1) * dy
    right = (spec.width - 1) * sx + (spec.taps[1] - 1) * dx
    size = down * x.row + right * x.pixel + 4 * spec.dwords + spec.groups * spec.group_bytes
    channels = spec.groups * spec.blocks * spec.tile.vectors * lanes
    return size, spec.groups * spec.outputs, 4 * channels * spec.steps, channels


def _winograd_bytes(spec: Winograd, lanes: int) -> tuple[int, int, int, int]:
    """Return the same of a Winograd kernel."""
    size = (spec.height + 1) * spec.x.row + (spec.width + 2) * spec.x.pixel
    channels = spec.outputs * lanes
    return size, spec.outputs, channels * 9 * 2 * spec.pairs, channels
