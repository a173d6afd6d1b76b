"""The errors of this package, and the form of their text."""

from __future__ import annotations

import re

# Control characters, line separators, marks that reverse the direction of text, and halves of characters.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str) -> str:
    """Return text without control characters, which could steer the terminal or add lines; they become spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def printable(text: str) -> str:
    """Return a name or a message as one line that cannot steer a terminal: control characters become escapes.

    So do bytes of a file's name that are not UTF-8, which Python represents by surrogates.
    """
    return _CONTROL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    if "\udc80" <= match[0] <= "\udcff":
        return f"\\x{ord(match[0]) - 0xDC00:02x}"
    return match[0].encode("unicode_escape").decode()


class RaysidError(Exception):
    """Base class: the text of an instance is a message for the user."""


class UserError(RaysidError):
    """The user's input cannot be used. The text is one line with the setting or file, the fault and the remedy.

    The command line prints it and exits with code 2; nothing was started or lost.
    """


class InvalidConfig(UserError):
    """Settings are unknown, not allowed or in conflict. The text has a line for each problem."""


class NotHere(UserError):
    """Files that a run needs are not on this machine and cannot be fetched. The text has a line for each.

    Attributes:
        settings: the settings that take the files' paths.
    """

    def __init__(self, message: str, settings: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.settings = settings


class RunFailed(RaysidError):
    """A run failed after its start. The text is one line with the role, the step and the remedy.

    The checkpoints written so far are whole: run the same command to resume from the newest.
    """


class Diverged(RunFailed):
    """A run has diverged: its samples or its weights are NaN or infinite."""


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
    """A learner's process died or hangs. The run catches this and restores all learners from the newest checkpoint."""


class PeerLost(LearnerLost):
    """Another rank of the learner died or does not answer."""


class NoAnswer(LearnerLost):
    """A process did not answer in time. It may still exist, and is ended."""


class DeviceFailed(LearnerLost):
    """An accelerator failed under a learner, whose process must be replaced: its device's state is undefined."""


class CheckpointDamaged(RaysidError):
    """A learner read another file than its checkpoint's manifest names. The run catches this and takes one before."""


class WorkersChanged(LearnerLost):
    """The learners' processes are replaced: in another number, or because a node leaves. Nothing failed."""
