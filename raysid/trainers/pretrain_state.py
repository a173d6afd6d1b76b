"""The checkpoints of a teacher's training: one file of state each, written by one worker."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from upath import UPath

from raysid.errors import UserError
from raysid.roles.state_files import read_state, write_state
from raysid.run.checkpoint import Checkpoint, Checkpoints
from raysid.storage import children, remove_folder

STATE = "state"  # name of a checkpoint's one file


def write_checkpoint(checkpoints: Checkpoints, state: dict[str, Any], batch_size: int) -> None:
    """Write a checkpoint, and remove those that are no longer kept.

    Args:
        state: tensors and plain values, among them `step`, the number of steps taken.
    """
    step = state["step"]
    file = write_state(checkpoints.path(step), STATE, state)
    checkpoints.finish(step, step * batch_size, [file])
    checkpoints.remove_old({})


def read_checkpoint(path: UPath) -> dict[str, Any]:
    """Read the state that `write_checkpoint` wrote to a checkpoint's folder."""
    return read_state(path, STATE)


def newest_checkpoint(training: UPath, checkpoints: Checkpoints, batch_size: int) -> Checkpoint | None:
    """Return the newest whole checkpoint, if need be one that an earlier version of raysid left to Ray Train.

    Those are folders `checkpoint_<time>` of `training` with the same file of state. The newest that can be read is
    written again as a checkpoint of raysid's own; then all of them are removed.
    """
    earlier = sorted(path for path in children(training) if re.match(r"checkpoint_\d", path.name))
    for folder in reversed(earlier):
        if checkpoints.newest_step() is not None:
            break
        with suppress(FileNotFoundError, UserError):  # cut short by a kill
            write_checkpoint(checkpoints, read_checkpoint(folder), batch_size)
    newest = checkpoints.newest()
    if newest is not None:
        for folder in earlier:
            remove_folder(folder)
    return newest
