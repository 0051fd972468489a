"""Everything that changes while a phase trains -> tensors, and back, bit for bit.

model.NAME         parameters and buffers
extra.NAME         what else the phase trains, and the average of weights
optim.I.K.NAME     state of parameter K in optimizer I
averages           loss, right answers and count of the epoch so far
rng.DEVICE.RANK    state of a random generator of process RANK
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qtool.core.errors import UserError
from qtool.data.batch_source import BatchT
from qtool.parallel.collectives import gather
from qtool.parallel.job import current
from qtool.runs.checkpoint import Checkpoint
from qtool.training.averages import Averages

if TYPE_CHECKING:
    from qtool.training.phase import Phase

Tensors = dict[str, Tensor]


def pack(phase: "Phase[BatchT]", averages: Averages) -> Tensors:
    """Return the state of `phase`; all processes of a job take part."""
    tensors = {f"model.{k}": v for k, v in phase.model.state_dict().items()}
    tensors |= {f"extra.{k}": v for k, v in phase.extra.items()}
    for index, optimizer in enumerate(phase.optimizers):
        for key, state in optimizer.state_dict()["state"].items():
            values = {n: torch.as_tensor(v) for n, v in state.items() if v is not None}
            tensors |= {f"optim.{index}.{key}.{n}": v for n, v in values.items()}
    tensors["averages"] = averages.totals
    return tensors | _random_states()


def _random_states() -> Tensors:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {
        f"rng.{device}.{rank}": one
        for device, state in states.items()
        for rank, one in enumerate(gather(state))
    }


def unpack(phase: "Phase[BatchT]", checkpoint: Checkpoint, averages: Averages) -> None:
    """Bring `phase` to where `checkpoint` was written.

    Raises:
        UserError: it is of another network or optimizer.
    """
    groups: dict[str, Tensors] = {}
    for name, tensor in checkpoint.tensors.items():
        kind, _, rest = name.partition(".")
        groups.setdefault(kind, {})[rest] = tensor
    try:
        phase.model.load_state_dict(groups.get("model", {}))
        with torch.no_grad():
            for name, tensor in phase.extra.items():
                tensor.copy_(groups["extra"][name])
        for index, optimizer in enumerate(phase.optimizers):
            _load_optimizer(optimizer, index, groups.get("optim", {}))
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint of {phase.name} does not fit this network and recipe ({reason}); "
            "delete checkpoint.safetensors to start this phase anew"
        ) from None
    if "averages" in groups:
        averages.totals.copy_(groups["averages"][""])
    _set_random_states(groups.get("rng", {}))


def _load_optimizer(
    optimizer: torch.optim.Optimizer, index: int, saved: Mapping[str, Tensor]
) -> None:
    content = optimizer.state_dict()
    for name, tensor in saved.items():
        which, key, field_name = name.split(".", 2)
        if int(which) == index:
            content["state"].setdefault(int(key), {})[field_name] = tensor
    optimizer.load_state_dict(content)
    # Files hold plain tensors; the optimizer is fastest where layouts are the parameters'.
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(tensor)


def _set_random_states(states: Mapping[str, Tensor]) -> None:
    """Set this process's generators; a job of more processes has no states for the others."""
    rank = current().rank
    if f"cpu.{rank}" in states:
        torch.set_rng_state(states[f"cpu.{rank}"])
    if f"cuda.{rank}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda.{rank}"])
