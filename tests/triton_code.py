"""What kernels become for a GPU, as JSON: ``triton_code.py NETWORK:SIZE:BATCH:ARCH ...``.

A process of its own, because kernels are interpreted in that of the tests. Behind the
architecture ``:fused`` lets products and sums be contracted, which exact code does not.
"""

import json
import re
import sys
from collections.abc import Callable
from typing import Any

from programs import Net, everything, mobilenet_v2, resnet

from qtool.core.dialect import Program
from runtimes.triton import compiled
from runtimes.triton.launch import EXACT

_MATRIX = re.compile(r"\b(?:wg)?mma\.(?:mma_async\.)?sync[\w.]*")
_FLOATS = re.compile(r"\b(?:add|sub|mul|div|fma|mad)\.[\w.]*f32")


def layers(size: int) -> Program:
    """Whole and broken steps of a matrix product, depthwise, grouped."""
    net = Net((3, size, size), raw=False)
    x = net.conv(net.conv(net.input, 64), 64, 3, groups=64)
    net.conv(net.conv(x, 64, 3, groups=2), 128, 1, pads=(0, 0, 0, 0))
    return net.program()


def gate(size: int) -> Program:
    """A product."""
    net = Net((8, size, size))
    net.mul("x", "x")
    return net.program()


NETWORKS: dict[str, Callable[[int], Program]] = {
    "everything": lambda size: everything(),
    "gate": gate,
    "layers": layers,
    "mobilenet": lambda size: mobilenet_v2(size).program(),
    "resnet": lambda size: resnet((64, 128, 256, 512), size).program(),
}


def kernels(network: str, size: str, batch: str, arch: str, *fused: str) -> list[Any]:
    """Return what is found in every kernel."""
    compiled.EXACT = {"enable_fp_fusion": True} if fused else EXACT
    program = NETWORKS[network](int(size))
    return [
        {
            "kernel": code.kernel, "layers": code.layers, "bytes": len(code.cubin),
            "matrix": sorted({*_MATRIX.findall(code.ptx)}),
            "floats": sorted({*_FLOATS.findall(code.ptx)}),
        }
        for code in compiled.compile_kernels(program, int(batch), int(arch), 132)
    ]  # fmt: skip


if __name__ == "__main__":
    json.dump([kernels(*given.split(":")) for given in sys.argv[1:]], sys.stdout)
