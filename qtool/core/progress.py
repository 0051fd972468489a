"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 10.0


class Progress(Protocol):
    """What long work reports to."""

    def start(self, phase: str, steps: int) -> None:
        """A phase of `steps` steps begins (the previous one is over)."""

    def step(self, text: str) -> None:
        """One step is done; `text` holds epoch, loss, accuracy, bits."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def close(self) -> None:
        """The work is over."""


class Silent:
    """Reports nothing: for tests and library use."""

    def start(self, phase: str, steps: int) -> None:
        """Ignore."""

    def step(self, text: str) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def close(self) -> None:
        """Ignore."""


class Plain:
    """A line every ten seconds and at the end of each phase."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase, self._steps, self._done = "", 0, 0
        self._began = self._shown = 0.0

    def start(self, phase: str, steps: int) -> None:
        """Begin a phase."""
        self._phase, self._steps, self._done = phase, steps, 0
        self._began = self._shown = time.monotonic()

    def step(self, text: str) -> None:
        """Print a line when the last one is old, or the phase is over."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown < PLAIN_INTERVAL_S and self._done < self._steps:
            return
        self._shown = now
        left = (now - self._began) / self._done * (self._steps - self._done)
        self.note(f"{self._phase} {self._done}/{self._steps}  {text}  {left:.0f} s left")

    def note(self, text: str) -> None:
        """Print `text`."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Nothing is open."""


class Live:
    """A rich progress bar with time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description:12}"), BarColumn(24), MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"), TimeRemainingColumn(),
            console=Console(stderr=True),
        )  # fmt: skip
        self._task: TaskID | None = None
        self._bar.start()

    def start(self, phase: str, steps: int) -> None:
        """Add a bar."""
        self._task = self._bar.add_task(phase, total=steps, text="")

    def step(self, text: str) -> None:
        """Advance the newest bar."""
        if self._task is not None:
            self._bar.update(self._task, advance=1, text=text)

    def note(self, text: str) -> None:
        """Print above the bars."""
        self._bar.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bars as they stand."""
        self._bar.stop()


def open_progress() -> Progress:
    """Return the progress that suits standard error."""
    return Live() if sys.stderr.isatty() else Plain(sys.stderr)
