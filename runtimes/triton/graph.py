"""A plan that runs again and again: on a GPU recorded once, as a CUDA graph."""

import numpy as np
import torch

from qtool.core.dialect import Program
from runtimes.base import Floats, Inputs
from runtimes.triton.device import Device
from runtimes.triton.operators import make_plan
from runtimes.triton.plan import Constants


class Session:
    """A program at one batch size.

    Kernels follow each other without the host: on a GPU the first run compiles and launches
    them, and the second is recorded as a graph, which later ones replay.

    Args:
        program: what is executed.
        batch: images of every run.
        device: where.
        constants: of its layers; what is missing is added.
    """

    def __init__(
        self, program: Program, batch: int, device: Device, constants: Constants
    ) -> None:
        self.batch, self._graph = batch, None
        self.plan, self.output = make_plan(program, batch, device, constants)
        if not device.interpreted:
            self._graph = self._recorded()

    def run(self, x: Inputs) -> Floats:
        """Return the output of `x`, (batch, C, H, W), after waiting for it."""
        self.plan.input.copy_(torch.from_numpy(np.ascontiguousarray(x)))
        self.launch()
        # A copy: the next run writes to the same memory.
        result: Floats = np.array(self.output.cpu().numpy())
        return result

    def launch(self) -> None:
        """Compute on what is in the plan's input; on a GPU this does not wait for the end."""
        if self._graph is None:
            self.plan.run()
        else:
            self._graph.replay()

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """Return all launches as one graph; compiling cannot be recorded, so it is first."""
        self.plan.run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.plan.run()
        return graph
