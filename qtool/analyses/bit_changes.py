"""When bits change while something is watched, and how much what is watched changes with them.

Bits are drawn in rounds: all candidates in random order, each for some steps, and back in the
opposite order. Values are compared with the mean of their round. A drift that is linear in a
round then meets all candidates alike, and can be told from what the bits do.
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
        channel on its own, mean over channels. ``noise``: the standard error of ``by_bits``,
        from how far visits at the same bits are apart when a linear drift is taken out: a
        variation that is not above it says nothing about bits.
    """
    ends, bits = trace[hold - 1 :: hold], np.array(drawn[hold - 1 :: hold])
    mean = _visits(ends.mean(1, keepdims=True), bits)
    return {
        "by_bits": {str(b): float(v.mean()) for b, v in mean.items()},
        "variation": _deviation(mean),
        "noise": _standard_error(list(mean.values())),
        "channel_variation": _deviation(_visits(ends, bits)),
    }


def _standard_error(visits: Sequence[Values]) -> float:
    """Return the standard error of a bit-width's mean; its visits are (visits, 1)."""
    count, candidates = len(visits[0]), len(visits)
    rest = sum(float(((v - v.mean()) ** 2).sum()) for v in visits)
    # Of all values, those that the means of bits and rounds and the rounds' slopes explain.
    freedom = count * candidates - candidates - count + 1
    return float(np.sqrt(rest / max(freedom, 1) / count))


def _visits(ends: Values, bits: NDArray[np.int64]) -> dict[int, Values]:
    """Return, per bit-width, (visits, channels): values over their round's mean, no drift."""
    widths = sorted(set(bits.tolist()), reverse=True)
    rounds = ends.reshape(-1, 2 * len(widths), ends.shape[1])
    means = np.maximum(rounds.mean(1, keepdims=True), np.finfo(np.float32).tiny)
    relative, time = rounds / means, np.linspace(-1, 1, rounds.shape[1])[:, None]
    slopes = (relative * time).sum(1, keepdims=True) / (time**2).sum()
    relative = (relative - slopes * time).reshape(ends.shape)
    return {b: relative[bits == b] for b in widths}


def _deviation(visits: dict[int, Values]) -> float:
    """Return the standard deviation between bits, a mean over channels."""
    return float(np.stack([v.mean(0) for v in visits.values()]).std(0).mean())
