"""The worker as seen from here: started when it is needed, asked, and ended."""

import os
import subprocess
import tempfile
from typing import Any, Self

from qtool.core.errors import UserError
from qtool.core.relay import worker
from qtool.core.relay.environment import COMMAND, require_relay
from qtool.core.relay.worker import Blobs, Header, read_message, write_message

_END_S = 10.0


class Process:
    """A `qtool.core.relay.worker` in Relay's environment; also a context.

    Args:
        threads: that TVM may use.

    Raises:
        UserError: no environment.
    """

    def __init__(self, threads: int = 1) -> None:
        # Nothing is downloaded: TVM would look for schedules of other people's tuning.
        variables = os.environ | {
            "TOPHUB_LOCATION": "NONE", "TVM_NUM_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
        }  # fmt: skip
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [str(require_relay()), "-I", str(worker.__file__)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._said, env=variables,
        )  # fmt: skip

    def ask(self, do: str, blobs: Blobs = (), **header: Any) -> tuple[Header, list[bytes]]:
        """Return the worker's answer.

        Raises:
            UserError: it has none, and why.
        """
        source, sink = self._process.stdout, self._process.stdin
        if source is None or sink is None:
            raise ValueError("the worker has no pipes")
        try:
            write_message(sink, {"do": do, **header}, blobs)
            answer = read_message(source)
        except (BrokenPipeError, ValueError):
            answer = None
        if answer is None:
            raise UserError(
                f"Relay's process ended with {self.close()}: {self._last_words()}; if its "
                f"environment is the reason, {COMMAND} makes it anew"
            )
        if "error" in answer[0]:
            raise UserError(f"Relay cannot {do} this network: {answer[0]['error']}")
        return answer

    def close(self) -> int:
        """End the worker and return its exit code."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = [line.strip() for line in self._said if line.strip()]
        return lines[-1] if lines else "it said nothing"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()
