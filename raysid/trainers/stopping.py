"""Being asked to stop: Ctrl-C, or the SIGTERM with which Ray, Slurm and Kubernetes end a job."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Between `enter` and `leave` the first signal to stop is noted, for the run to stop at its next step.

    A second one acts as it would have without this. In a thread that cannot take signals it notes none.

    Attributes:
        received: the signal, once there was one.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def enter(self) -> None:
        """Note signals from now on."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def leave(self) -> None:
        """Let signals act as they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def asked(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.leave()
