"""When a run ends before its last step: a signal, or the end of its time."""

import contextlib
import math
import os
import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType

from lit_gpt.settings import STARTED, Stopped

ENDING = 5.0
"""Seconds kept for the plot, the record of the run, and the process's end."""

DISK = 2e8
"""Bytes that a disk takes in a second, for a save that was never timed."""


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGHUP: 129}
"""Signals that end a run in good order -> exit codes; SIGUSR1 is what schedulers send some time before SIGTERM."""


class Signals:
    """Notes a signal while a run is `waiting` for one; before, and with a further Ctrl-C, the process ends at once.

    Args:
        tell: say on stderr what a signal will lead to.
    """

    def __init__(self, tell: bool = True) -> None:
        self.tell = tell
        self.received: signal.Signals | None = None
        self.waiting = False
        """Whether there is somebody who looks at `received`."""
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            heard = [number for number in CODES if signal.getsignal(number) != signal.SIG_IGN]  # nohup lets one ignore
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.received or not self.waiting):
            raise KeyboardInterrupt
        if not self.waiting:
            raise Stopped(
                f"stopped by {signal.Signals(number).name} before the first step", CODES[signal.Signals(number)]
            )
        if not self.received:
            self.received = signal.Signals(number)
            hint = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
            # not print(): the signal may have come in the middle of one
            with contextlib.suppress(OSError):  # the terminal may be gone
                self.tell and os.write(2, f"\n{self.received.name}: saving after this step{hint}\n".encode())


@dataclass
class Pace:
    """Seconds that things take."""

    save: float
    validation: float = 0.0
    steps: int = 0
    """How many steps were timed; a process's first is not: it is slower than the others."""
    seconds: float = 0.0
    """What they took, with the validations and saves on the way."""


class Deadline:
    """How many steps fit into a time, so that the last validation and save do, too.

    Args:
        limit: seconds for the whole run, from the start of its first process; may be infinite.
        spent: seconds that earlier processes of the run took.
        pace: what they measured; kept up to date.
    """

    def __init__(self, limit: float, spent: float, pace: Pace) -> None:
        self.limit, self._earlier, self.pace = limit, spent, pace
        self._counted: float | None = None

    @property
    def spent(self) -> float:
        """Seconds since the start of the run's first process, those between processes left out."""
        return self._earlier + time.monotonic() - STARTED

    def count(self) -> None:
        """Notes that a step is done."""
        if self._counted is not None:
            self.pace.steps += 1
            self.pace.seconds += self.spent - self._counted
        self._counted = self.spent

    def fitting(self, extra: float = 0.0) -> float:
        """Steps that still fit after `extra` seconds, the last of them a quarter longer; infinite if none was timed."""
        left = self.limit - self.spent - ENDING - self.pace.validation - self.pace.save - extra
        if left <= 0:
            return 0
        if left == math.inf or not self.pace.steps:
            return math.inf
        return max(0, math.floor(left / (self.pace.seconds / self.pace.steps) - 0.25))
