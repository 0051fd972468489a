"""Comparisons that a run has passed: exporting the same bits again needs no torch.

``witness.json`` in the run directory holds records by a hash of all that they depend on: what
the traced graph does (`qtool.export.adaptive.origin_key`), the program, its form, the images.
Whatever cannot be read is compared again; what fell out is not kept.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import qtool
from qtool.core.errors import UserError
from qtool.core.files import read_json, write_json
from qtool.core.records import from_json, to_json
from qtool.export.adaptive import origin_key
from qtool.runs.run import WITNESS, Run
from qtool.runs.stage import Stage
from qtool.witness.record import WitnessRecord

_KEPT = 16  # the last ones


@dataclass(frozen=True)
class Seen:
    """The records in the directory of `run`."""

    run: Run

    def key(self, *parts: str) -> str:
        """Return the hash of the run and of `parts`."""
        path = self.run.path(Stage.FLOAT.file)
        weights = hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()
        text = " ".join((qtool.__version__, origin_key(self.run), weights, *parts))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def find(self, key: str) -> WitnessRecord | None:
        """Return the record under `key`."""
        try:
            return from_json(WitnessRecord, self._content()[key])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def keep(self, key: str, record: WitnessRecord) -> None:
        """Keep a record of which nothing fell out."""
        if record.fallen:
            return
        kept = {**self._content(), key: to_json(record)}
        try:
            write_json(self.run.path(WITNESS), dict(list(kept.items())[-_KEPT:]))
        except OSError:
            pass  # a run that may only be read is compared every time

    def _content(self) -> dict[str, Any]:
        try:
            return read_json(self.run.path(WITNESS), "witness")
        except (UserError, OSError):
            return {}
