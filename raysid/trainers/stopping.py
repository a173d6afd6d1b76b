"""Stop a run in order at Ctrl-C, or at the SIGTERM with which Ray, Slurm and Kubernetes end a job."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Notes the first signal between `enter` and `leave`, so that the run can stop at its next step.

    A second signal acts as it would without this class. Outside the main thread, the only one that receives signals,
    nothing is noted.

    Attributes:
        received: the signal; None so far.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def enter(self) -> None:
        """Note signals from now on."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def leave(self) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def asked(self) -> bool:
        """Return True once a signal has been received."""
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.leave()
