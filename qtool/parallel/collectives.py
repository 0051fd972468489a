"""Sums over the processes of a job; without a job, each of them is the identity."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from qtool.parallel.job import Job, current, other_process_ended

_PATIENCE = timedelta(minutes=30)


def start(job: Job) -> None:
    """Connect the processes: gloo for tensors in memory, nccl for those on a GPU."""
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(job.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    try:
        distributed.init_process_group(backend, timeout=_PATIENCE)
    except RuntimeError:
        raise other_process_ended() from None


def finish() -> None:
    """Wait until every process has done its work.

    The connections stay: gloo's threads, when another process closes its end while this one
    destroys its own, now and then end the process with an abort. `qtool.parallel.job.leave`
    ends the process without destroying anything.
    """
    any_process(False)


def _reduce(tensor: Tensor, how: Any = distributed.ReduceOp.SUM) -> Tensor:
    """Reduce `tensor` over all processes, in place."""
    try:
        distributed.all_reduce(tensor, how)
    except RuntimeError as error:
        raise other_process_ended() from error
    return tensor


class _AllReduceSum(torch.autograd.Function):
    """x -> the sum of every process's x; each of them uses it, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _reduce(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _reduce(grads[0].clone(memory_format=torch.contiguous_format))


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, differentiable.

    Args:
        tensor: of the same shape and dtype in every process; it is not changed.

    Returns:
        A new tensor; `tensor` itself in a job of one process.
    """
    if current().size == 1:
        return tensor
    out: Tensor = _AllReduceSum.apply(tensor)  # type: ignore[no-untyped-call]
    return out


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes, with one message for all."""
    if current().size == 1:
        return
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for dtype in sorted({str(grad.dtype) for grad in grads}):
        same = [grad for grad in grads if str(grad.dtype) == dtype]
        flat = _reduce(torch.cat([grad.reshape(-1) for grad in same])).div_(current().size)
        parts = torch.split(flat, [grad.numel() for grad in same])
        for grad, part in zip(same, parts, strict=True):
            grad.copy_(part.view(grad.shape))


def any_process(flag: bool) -> bool:
    """Return True where `flag` is true in some process; all wait for each other."""
    if current().size == 1:
        return flag
    return bool(_reduce(torch.tensor(float(flag)), distributed.ReduceOp.MAX))


def gather(tensor: Tensor) -> list[Tensor]:
    """Return every process's `tensor`, all of one shape and in memory, by rank."""
    if current().size == 1:
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(current().size)]
    try:
        distributed.all_gather(found, tensor)
    except RuntimeError as error:
        raise other_process_ended() from error
    return found
