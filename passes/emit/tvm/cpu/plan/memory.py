"""Where tensors lie in one arena: lifetimes, then largest first into the lowest gap.

Source: Pisarchyk and Lee 2020 (arXiv 2001.03288), "greedy by size".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from passes.emit.tvm.cpu.kernels.layout import round_up

ALIGNMENT = 64
# Vector loads may read beyond a tensor, never write.
SLACK = 128


@dataclass(frozen=True)
class Life:
    """A tensor's bytes and the steps between which it is needed, both included."""

    bytes: int
    first: int
    last: int


def lifetimes(
    sizes: Mapping[str, int], steps: Sequence[tuple[tuple[str, ...], str]], kept: str
) -> dict[str, Life]:
    """Return the life of every tensor.

    Args:
        sizes: bytes by name; tensors elsewhere are not in it.
        steps: what each step reads and writes, in order.
        kept: the tensor that is read behind the last step.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, (inputs, output) in enumerate(steps):
        for name in (*inputs, output):
            first.setdefault(name, index)
            last[name] = index
    last[kept] = len(steps)
    return {
        name: Life(sizes[name], first[name], last[name]) for name in sizes if name in first
    }


def arrange(lives: Mapping[str, Life]) -> tuple[dict[str, int], int]:
    """Return the offset of every tensor, and the bytes of all."""
    offsets: dict[str, int] = {}
    total = 0
    for name, life in sorted(lives.items(), key=lambda item: -item[1].bytes):
        size = round_up(life.bytes + SLACK, ALIGNMENT)
        taken = sorted(
            (offsets[other], offsets[other] + round_up(lives[other].bytes + SLACK, ALIGNMENT))
            for other in offsets
            if lives[other].first <= life.last and life.first <= lives[other].last
        )
        place = 0
        for start, end in taken:
            if place + size <= start:
                break
            place = max(place, end)
        offsets[name] = place
        total = max(total, place + size)
    return offsets, total


def apart(lives: Mapping[str, Life]) -> tuple[dict[str, int], int]:
    """Return offsets that no two tensors share, and the bytes of all."""
    offsets, total = {}, 0
    for name, life in lives.items():
        offsets[name] = total
        total += round_up(life.bytes + SLACK, ALIGNMENT)
    return offsets, total
