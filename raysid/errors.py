"""Errors a user can act on."""

from __future__ import annotations


class RaysidError(Exception):
    """What this package says itself: its text is the line to show."""


class UserError(RaysidError):
    """Something the user gave cannot be used: one line saying what, where and what to do.

    The command line prints the line and exits with code 2; nothing has been started or lost.
    """


class NotHere(UserError):
    """Files that a run needs are not on this machine, nor can they be fetched: a line for each.

    Attributes:
        settings: by which settings to name them once they are here.
    """

    def __init__(self, message: str, settings: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.settings = settings


class RunFailed(RaysidError):
    """A run that had started could not go on: one line saying which role, which step and what to do.

    The checkpoints written so far are whole: run the same command to resume from the newest.
    """


class NoRoom(RunFailed):
    """A disk or a bucket's quota is full; the text names it. Make room there, then run the same command to resume."""


class RunStopped(RaysidError):
    """A run was stopped by a signal. Run the same command to resume from its last checkpoint.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class LearnerLost(RaysidError):
    """A learner's process died: its run must go back to a checkpoint. The run itself catches this."""


class PeerLost(LearnerLost):
    """Another rank of a learner died, or stands still, as the rank that says so has noticed."""


class WorkersChanged(LearnerLost):
    """Ray Train has started its workers anew, as many as there is room for now: nothing failed."""
