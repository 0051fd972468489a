"""What can be exported: it gives an adaptive graph. A run does (`qtool.export.adaptive`)."""

from typing import Protocol

import onnx_ir as ir

from qtool.core.selection import Selection


class AdaptiveSource(Protocol):
    """A model that holds every candidate until bits are chosen.

    Its graph has ``qtool::FakeQuant`` nodes on every edge that the device rounds, and
    ``qtool::Norm`` nodes where a norm or a bias has several rows (`qtool.export.trace`
    says what they look like). What comes after, `passes.pipelines.lower`, is the same for all.
    """

    def graph(self) -> ir.Model:
        """Return the adaptive graph, which serves every selection; the caller's own."""
        ...

    def selection(self) -> Selection:
        """Return the bits that it is deployed at where none are asked for."""
        ...

    def metadata(self, selection: Selection) -> dict[str, str]:
        """Return what artifacts at `selection` shall say of where they come from."""
        ...
