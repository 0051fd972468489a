"""A layer's input quantizer on the grid that its tensor has already.

A tensor with a grid of its own (added, pooled, read twice) that a layer reads at the same bits
would be rounded twice: on the device a pass over memory that changes 8 bits into 8 other bits,
3 % of ResNet-18's latency. The layer follows the tensor's grid instead.
"""

from typing import Any

from torch import Tensor, nn

from qtool.nn.modules.fake_quant import FakeQuantizer

_LEADERS = (
    "step", "zero_point", "zero_points", "default_zero_points", "asymmetric", "ceiling",
    "rows", "kind", "grids",
)  # fmt: skip


class SharedGrid(FakeQuantizer):
    """Stands where a layer's input quantizer stands; step and zero point are its leader's.

    Args:
        name: the layer.
        leader: the quantizer of the tensor. It is not a submodule here: it belongs to the
            network, which saves and trains its step once.
    """

    def __init__(self, name: str, leader: FakeQuantizer) -> None:
        nn.Module.__init__(self)  # the leader has what a quantizer's own constructor makes
        self.name, self.role = name, "activation"
        self.bits, self.signed = leader.bits, leader.signed
        self.selected: int | None = None
        self.mix: Tensor | None = None
        self.observed: Tensor | None = None
        self.observing = False
        self._prologue = ()
        self._leader = (leader,)

    def __getattr__(self, name: str) -> Any:
        """Return the leader's step and zero point; torch calls this for what is not found."""
        return (
            getattr(self._leader[0], name) if name in _LEADERS else super().__getattr__(name)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, which is on this grid already, in training."""
        (leader,) = self._leader
        same = leader.mix is None and self.mix is None and leader.selected == self.selected
        return x if self.training and same and not self.observing else super().forward(x)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Load nothing: there is nothing of its own."""

    def initialise(self, values: Tensor) -> None:
        """Leave the grid to its leader."""

    def cover(self, low: float, high: float) -> None:
        """Leave the grid to its leader."""
