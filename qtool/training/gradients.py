"""How the gradients of several passes on one batch become that of one step.

mean over passes    g = (1/M) sum over m of g_m: Eq. 1 of MetaMix, and a batch in one pass.
sum over passes     g = sum over m of g_m: CoQuant (arXiv 2103.01435, Algorithm 1)
mean over uses      g = (sum over m of g_m) / (passes m that used the parameter): MEBQAT
                    (arXiv 2207.10188), where a task in floating point uses no quantizer. Its
                    elements are clamped then, to +-10 there.

A batch computed in parts has the mean of these over its parts, and a job over its processes,
which all do the same passes.
"""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qtool.parallel.collectives import all_reduce_sum
from qtool.parallel.job import current


class GradientRule(Protocol):
    """Gradients of passes to the gradient of one step, in the parameters' ``grad``."""

    def start(self, parts: int) -> None:
        """Begin a step on a batch of so many parts."""

    def start_part(self) -> None:
        """Begin the passes on the next part."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one pass on this part."""

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the step's gradients of the sums, which are means over the processes by now."""


class MeanOverPasses:
    """The gradient of the passes' mean loss.

    Args:
        passes: losses on each batch.
        clamp: largest magnitude of an element of the mean; 0 for any.
    """

    def __init__(self, passes: int = 1, clamp: float = 0.0) -> None:
        self.passes, self.clamp = passes, clamp
        self._losses = passes

    def start(self, parts: int) -> None:
        """Begin a step on a batch of so many parts."""
        self._losses = parts * self.passes

    def start_part(self) -> None:
        """Begin the passes on the next part."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one pass on this part."""
        (loss / self._losses).backward()  # type: ignore[no-untyped-call]

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """Clamp the mean."""
        clamp_gradients(parameters, self.clamp)


class SumOverPasses(MeanOverPasses):
    """The gradient of the passes' summed loss."""

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give what no pass used a gradient of 0.

        Of a bank kept in one tensor it is the same. And a fused optimizer cannot start the
        momentum of some parameters later than that of others.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


class MeanOverUses:
    """The sum of the passes' gradients over the number of passes that used the parameter.

    A pass uses a parameter that autograd finds in its graph, whatever the gradient. Of a bank
    (`qtool.core.bank`) it uses the rows whose gradient is not all zero: to the others autograd
    gives zeros. What is computed once for all passes (`qtool.nn.shared_prefix`), its gradient
    coming after theirs, is used by each of them.

    Args:
        model: whose parameters are trained.
        clamp: largest magnitude of an element of the mean; 0 for any.
        banks: those of its parameters that have a row per candidate.
    """

    def __init__(
        self, model: nn.Module, clamp: float = 0.0, banks: Collection[nn.Parameter] = ()
    ) -> None:
        self.clamp = clamp
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        ids = {id(bank) for bank in banks}
        # Of each bank, its rows' places among the rows of all.
        self._rows: dict[nn.Parameter, Tensor] = {}
        for bank in (p for p in self._parameters if id(p) in ids):
            start = sum(map(len, self._rows))
            self._rows[bank] = torch.arange(start, start + len(bank), device=bank.device)
        self._uses: dict[nn.Parameter, int] = {}
        # A backward's bank, its passes, and of each row how many elements were not 0.
        self._counts: list[tuple[nn.Parameter, int, Tensor]] = []
        self._hooks: list[RemovableHandle] = []
        # Passes on this part that are done, and whether one is being done.
        self._done, self._inside = 0, False

    def start(self, parts: int) -> None:
        """Begin a step on a batch of so many parts."""
        for hook in self._hooks:  # of a step that an error ended
            hook.remove()
        self._uses = dict.fromkeys(self._parameters, 0)
        self._counts.clear()
        self._hooks = [self._hook(p) for p in self._parameters]

    def _hook(self, parameter: nn.Parameter) -> RemovableHandle:
        hook: RemovableHandle = parameter.register_hook(  # type: ignore[no-untyped-call]
            partial(self._count, parameter)
        )
        return hook

    def start_part(self) -> None:
        """Begin the passes on the next part."""
        self._done = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one pass on this part."""
        self._inside = True
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._inside = False
        self._done += 1

    def _count(self, parameter: nn.Parameter, grad: Tensor) -> None:
        """Count what a backward's gradient of `parameter` says of its use."""
        passes = 1 if self._inside else self._done
        self._uses[parameter] += passes
        if parameter in self._rows:
            count = grad.reshape(len(grad), -1).count_nonzero(1)
            self._counts.append((parameter, passes, count))

    @torch.no_grad()
    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """Divide the sums by their numbers of uses, and clamp."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        plain = [(p.grad, self._uses[p]) for p in parameters if p not in self._rows]
        if found := [(grad, uses) for grad, uses in plain if grad is not None]:
            torch._foreach_div_(*map(list, zip(*found, strict=True)))
        for bank, uses in self._row_uses().items():
            if bank.grad is not None:
                bank.grad.div_(uses.view(-1, *[1] * (bank.ndim - 1)))
        clamp_gradients(parameters, self.clamp)

    def _row_uses(self) -> dict[nn.Parameter, Tensor]:
        """Return by bank how many passes used each of its rows, but no less than one.

        They are means over the processes, as the gradients are.
        """
        if not self._rows:
            return {}
        sizes = [len(bank) for bank in self._rows]
        uses = torch.zeros(sum(sizes), device=next(iter(self._rows)).device)
        if self._counts:
            banks, passes, counts = zip(*self._counts, strict=True)
            used = torch.cat([passes[i] * counts[i].ne(0) for i in range(len(banks))])
            uses.index_add_(0, torch.cat([self._rows[bank] for bank in banks]), used.float())
        if (processes := current().size) > 1:
            uses = all_reduce_sum(uses) / processes
        return dict(zip(self._rows, torch.split(uses.clamp(min=1), sizes), strict=True))


@torch.no_grad()
def clamp_gradients(parameters: Sequence[nn.Parameter], largest: float) -> None:
    """Clamp every element to +-`largest`; 0: leave them."""
    found = [p.grad for p in parameters if p.grad is not None]
    if largest and found:
        torch._foreach_clamp_min_(found, -largest)
        torch._foreach_clamp_max_(found, largest)
