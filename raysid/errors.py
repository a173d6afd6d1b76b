"""Errors a user can act on."""

from __future__ import annotations


class RaysidError(Exception):
    """What this package says itself: its text is the line to show."""


class UserError(RaysidError):
    """Something the user gave cannot be used: one line saying what, where and what to do.

    The command line prints the line and exits with code 2; nothing has been started or lost.
    """


class InvalidConfig(UserError):
    """Settings are unknown, not allowed, or in conflict: a line for each problem."""


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


class StorageError(RaysidError):
    """A file, a folder or a bucket could not be read or written.

    `raysid.storage` raises it in place of the errors of the operating system and of the buckets' clients. The command
    line prints it and exits with code 2, or with code 1 where the storage is full. A run that had started raises
    RunFailed from it, which names the newest whole checkpoint.

    Attributes:
        path: the file, the folder or the URL.
        reason: the cause in one line, with what to do about it where that is known.
        full: True if the disk is full or a quota is used up.
    """

    def __init__(self, path: str, action: str, reason: str, full: bool = False) -> None:
        super().__init__(path, action, reason, full)  # as pickle calls it
        self.path, self.reason, self.full = path, reason, full

    def __str__(self) -> str:
        path, action, reason, _ = self.args
        return f"{path} cannot be {action}: {reason}"


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
