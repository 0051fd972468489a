"""When bits change while something is watched, and how much what is watched changes with them.

Bits are drawn in rounds: all candidates in random order, each for some steps, and back in the
opposite order. Values are compared with the mean of their round. A drift that is linear in a
round then meets all candidates alike.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# Steps that drawn bits stay: a running average of momentum 0.1 then has 0.9^20 = 12 % of what
# it was before.
HOLD = 20


def schedule(bits: Sequence[int], steps: int, seed: int) -> tuple[list[int], int]:
    """Return the bits at every step, and for how many steps they stay.

    Args:
        bits: candidates.
        steps: how many there may be; one round is done at least.
        seed: of the order in every round.
    """
    rounds = max(1, steps // (HOLD * 2 * len(bits)))
    hold = max(1, min(HOLD, steps // (rounds * 2 * len(bits))))
    rng = np.random.default_rng(seed)
    there = [rng.permutation(list(bits)) for _ in range(rounds)]
    order = np.concatenate([part for drawn in there for part in (drawn, drawn[::-1])])
    return [int(b) for b in order.repeat(hold)], hold


def variation(trace: Values, drawn: Sequence[int], hold: int) -> dict[str, Any]:
    """Return how much `trace` changes with the bits.

    Args:
        trace: (steps, channels), positive.
        drawn: bits at every step, of `schedule`.
        hold: steps that they stay.

    Returns:
        ``by_bits``: the mean over channels at the end of a stretch of steps, over its round's
        mean; the mean over rounds. ``variation``: standard deviation of that between bits,
        whose mean is 1: a coefficient of variation. ``channel_variation``: the same of every
        channel on its own, mean over channels.
    """
    ends, bits = trace[hold - 1 :: hold], np.array(drawn[hold - 1 :: hold])
    count = 2 * len(set(drawn))
    by_bits = _by_bits(ends.mean(1, keepdims=True), bits, count)
    return {
        "by_bits": {str(b): float(v[0]) for b, v in by_bits.items()},
        "variation": _deviation(by_bits),
        "channel_variation": _deviation(_by_bits(ends, bits, count)),
    }


def _by_bits(ends: Values, bits: NDArray[np.int64], count: int) -> dict[int, Values]:
    """Return, per bit-width, each column over its round's mean, a mean over rounds."""
    rounds = ends.reshape(-1, count, ends.shape[1])
    means = np.maximum(rounds.mean(1, keepdims=True), np.finfo(np.float32).tiny)
    relative = (rounds / means).reshape(ends.shape)
    return {int(b): relative[bits == b].mean(0) for b in sorted(set(bits.tolist()))[::-1]}


def _deviation(by_bits: dict[int, Values]) -> float:
    return float(np.stack(list(by_bits.values())).std(0).mean())
