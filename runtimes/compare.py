"""Parity, counted in integers: how many codes differ, by how much, where first."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtimes.base import Codes, Floats


@dataclass
class Parity:
    """Differences of one runtime from the baseline, over any number of tensors.

    `diverging` has an entry for each tensor that differs, in execution order.
    """

    mismatched: int = 0
    compared: int = 0
    max_lsb: int = 0
    first_divergence: dict[str, Any] | None = None
    diverging: list[dict[str, Any]] = field(default_factory=list)

    def add(self, tensor: str, expected: Codes, got: Codes) -> None:
        """Compare one tensor (N, ...); a wrong shape counts as all wrong."""
        self.compared += expected.size
        if expected.shape != got.shape:
            detail = {"expected_shape": [*expected.shape], "got_shape": [*got.shape]}
            self._differ(tensor, (expected.size, expected.size), 255, detail)
            return
        wrong = expected != got
        count = int(wrong.sum())
        if count:
            where = tuple(int(i) for i in np.argwhere(wrong)[0])
            lsb = int(np.abs(expected.astype(np.int64) - got.astype(np.int64)).max())
            values = {"expected": int(expected[where]), "got": int(got[where])}
            self._differ(tensor, (count, expected.size), lsb, {"index": list(where), **values})

    def _differ(
        self, tensor: str, share: tuple[int, int], lsb: int, detail: dict[str, Any]
    ) -> None:
        """Note a tensor of which `share`, (mismatched, compared), differs."""
        mismatched, compared = share
        self.mismatched += mismatched
        self.max_lsb = max(self.max_lsb, lsb)
        if self.first_divergence is None:
            self.first_divergence = {"tensor": tensor, **detail}
        entry = {"tensor": tensor, "mismatched": mismatched, "compared": compared}
        self.diverging.append({**entry, "max_lsb": lsb})

    def add_all(
        self,
        expected: Mapping[str, Codes],
        got: Mapping[str, Codes],
        fused: Collection[str] = (),
    ) -> None:
        """Compare tensors in the order of `expected`, which is execution order.

        Args:
            expected: tensors of the baseline.
            got: tensors of the other runtime.
            fused: names that may be absent: a kernel holds them in registers.
        """
        for name, codes in expected.items():
            if name in got or name not in fused:
                self.add(name, codes, got[name])

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return dataclasses.asdict(self)


def output_codes(y: Floats, scale: float, zero_point: int) -> Codes:
    """Return the integer codes behind dequantized outputs, unclipped int64.

    Exact for values that a DequantizeLinear of this grid made; others show up as differences.
    """
    codes: Codes = np.rint(y / np.float32(scale)).astype(np.int64) + zero_point
    return codes
