"""A layer's input quantizer on the grid that its tensor has already.

A tensor with a grid of its own (added, pooled, read twice) that a layer reads at the same bits
would be rounded twice: on the device a pass over memory that changes 8 bits into 8 other bits,
3 % of ResNet-18's latency. The layer follows the tensor's grid instead.
"""

import torch
from torch import Tensor

from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.ops.on_grid import quantized


class SharedGrid(Quantizer):
    """Stands where a layer's input quantizer stands; step and zero point are its leader's.

    Args:
        name: the layer.
        leader: the quantizer of the tensor. It is not a submodule here: it belongs to the
            network, which saves, trains and fits its step once.
    """

    def __init__(self, name: str, leader: FakeQuantizer) -> None:
        super().__init__(name, "activation", leader.bank, leader.signed)
        self.kind = leader.kind
        self._leader = (leader,)

    @property
    def leader(self) -> FakeQuantizer:
        """The quantizer of the tensor."""
        return self._leader[0]

    @property
    def step(self) -> Tensor:
        """The leader's steps (rows, 1)."""
        return self.leader.step

    def limits(self, bits: int) -> tuple[int, int]:
        """Return (Qn, Qp), the leader's."""
        return self.leader.limits(bits)

    def scale(self, bits: int) -> Tensor:
        """Return the leader's step, a scalar."""
        return self.leader.scale(bits)

    def quantize_at(self, x: Tensor, bits: int) -> Tensor:
        """Fake-quantize `x` on the leader's grid."""
        return self.leader.quantize_at(x, bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, which is on this grid already, in training."""
        leader = self.leader
        if torch.onnx.is_in_onnx_export():
            usual = leader.zero_points == leader.default_zero_points
            return self._traced(x, () if usual else leader.zero_points)
        if self.follows_device(x) and leader.selected == self.selected:
            return quantized(x, leader.int_grid())
        same = leader.mix is None and self.mix is None and leader.selected == self.selected
        return x if self.training and same else self.quantize(x)

    @torch.no_grad()
    def bake(self) -> None:
        """Compute, for a trace, the steps of the leader's grid."""
        self._bake([self.scale(bits) for bits in self.bits])
